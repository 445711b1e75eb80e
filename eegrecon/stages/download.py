"""`download`: fetch what has been published, verify it, or say how to do so by hand.

A tool, not a stage: it has no config, no manifest and no part in the chain. What it brings is read by `prepare-data`
and `extract-targets` where their configs say so.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from eegrecon.data.catalogue import Entry

PAUSE = 1.0  # seconds before the first retry
OWN_SET = {"original", "raw"}  # layouts that are not their experiment's default go to a set of their own


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="what to download; --list shows the names")
    add("--out", metavar="DIR", help="the folder to write into; default data/things_eeg2 or data/things_meg, by set")
    add("--subject", type=int, action="append", metavar="N", help="only this subject (again for more); default all")
    add("--list", action="store_true", help="show what there is (with NAMEs: where it is and how to get it by hand)")


def run(options: argparse.Namespace) -> int:
    """Download the named entries, or list what there is.

    Raises:
        ConfigError: A name or a subject is unknown.
        Unreachable: There is no network; the steps by hand have been printed.
        DataError: A file is not there, is not what was published, or does not fit on the disk.
    """
    from rich.console import Console

    from eegrecon.data.catalogue import ENTRIES
    from eegrecon.errors import ConfigError

    console = Console(highlight=False, markup=False, emoji=False)
    entries = _entries(options.names)
    if options.list and not entries:
        _table(console, ENTRIES)
        return 0
    if not entries:
        raise ConfigError("Name what to download, such as vit-h-14-features: eegrecon download --list shows all.")
    subjects = _subjects(entries, options.subject)
    for entry in entries:
        out = Path("data", entry.set) if options.out is None else Path(options.out)
        chosen = subjects if entry.subjects else ()
        if options.list:
            _describe(console, entry, chosen, out)
        else:
            _download(console, entry, chosen, out)
    return 0


def _entries(names: Sequence[str]) -> list[Entry]:
    from eegrecon.data.catalogue import CATALOGUE
    from eegrecon.errors import ConfigError

    for name in names:
        if name not in CATALOGUE:
            close = get_close_matches(name, CATALOGUE, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigError(f"There is nothing named {name!r} to download{hint}: eegrecon download --list shows all.")
    return [CATALOGUE[name] for name in dict.fromkeys(names)]


def _subjects(entries: Sequence[Entry], asked: Sequence[int] | None) -> tuple[int, ...]:
    """The subjects that were asked for, each known to every entry that comes by subject."""
    from eegrecon.errors import ConfigError

    subjects = tuple(sorted(set(asked or ())))
    if subjects and not any(entry.subjects for entry in entries):
        raise ConfigError(f"{entries[0].name} does not come by subject: leave --subject out.")
    for entry in entries:
        unknown = [subject for subject in subjects if entry.subjects and subject not in entry.subjects]
        if unknown:
            raise ConfigError(
                f"{entry.name} has the subjects {entry.subjects[0]} to {entry.subjects[-1]}, but it was asked for "
                f"--subject {unknown[0]}."
            )
    return subjects


def _download(console: Console, entry: Entry, subjects: tuple[int, ...], out: Path) -> None:
    from eegrecon.data.fetch import check_disk, fetch, place, size_on_disk
    from eegrecon.data.listings import remotes_of
    from eegrecon.data.web import Unreachable

    console.print(f"{entry.name}: {entry.what}\n  from {entry.page}\n  licence: {entry.licence}", soft_wrap=True)
    try:
        remotes = remotes_of(entry, subjects, pause=PAUSE)
        missing = [max((remote.size or 0) - size_on_disk(place(out, remote.path)), 0) for remote in remotes]
        check_disk(out, sum(missing), entry.name)
        with _bars() as bars:
            for remote in remotes:
                task = bars.add_task(remote.path, total=remote.size)

                def tell(what: str, done: int, total: int | None, task: TaskID = task, name: str = remote.path) -> None:
                    bars.update(task, description=f"{what} {name}", completed=done, total=total)

                fetched = fetch(remote, out, progress=tell, pause=PAUSE)
                bars.remove_task(task)
                state = "was there" if fetched.was_there else "downloaded"
                verified = " and ".join(fetched.verified)
                console.print(
                    f"  {fetched.path}  {fetched.size:,} bytes  {state}, verified by {verified}", soft_wrap=True
                )
    except Unreachable:
        if not _all_there(entry, subjects, out):
            _by_hand(console, entry, subjects, out)
            _next(console, entry, subjects, out)
            raise
        console.print("  The publisher cannot be reached; every file is there with the published size.", soft_wrap=True)
    _next(console, entry, subjects, out)


def _all_there(entry: Entry, subjects: tuple[int, ...], out: Path) -> bool:
    """Whether every file lies there with the size that the catalogue has to the byte (put there by hand, say)."""
    from eegrecon.data.fetch import place
    from eegrecon.data.listings import path_of

    files = entry.wanted(subjects)
    if any(file.is_pattern or file.size is None for file in files):
        return False
    places = [place(out, path_of(entry, file.path)) for file in files]
    return all(path.is_file() and path.stat().st_size == file.size for path, file in zip(places, files, strict=True))


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, transient=True, console=Console(stderr=True, highlight=False, markup=False, emoji=False))


def _table(console: Console, entries: Sequence[Entry]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    table.add_column("name", overflow="fold", ratio=5)
    table.add_column("size", overflow="fold", ratio=2)
    table.add_column("licence", overflow="fold", ratio=2)
    for entry in entries:
        place = f"{'osf' if entry.kind == 'link' else entry.kind}: {entry.where}"
        size = _size(entry, ()) + (f"\n{len(entry.subjects)} subjects" if entry.subjects else "")
        name = Text(f"{entry.name}\n", style="bold").append(f"{entry.what}\n{place}", style="not bold")
        table.add_row(name, size, entry.licence, end_section=True)
    console.print(table)
    console.print("Unknown sizes are asked of the publisher.", "More of one: eegrecon download --list NAME")


def _describe(console: Console, entry: Entry, subjects: tuple[int, ...], out: Path) -> None:
    lines = [f"{entry.name}: {entry.what}", f"  licence: {entry.licence}", f"  size: {_size(entry, subjects)}"]
    lines += [f"  version: {entry.version}"] if entry.version else []
    lines += [f"  subjects: {entry.subjects[0]} to {entry.subjects[-1]}"] if entry.subjects else []
    console.print("\n".join(lines), soft_wrap=True)
    _by_hand(console, entry, subjects, out)
    _next(console, entry, subjects, out)


def _by_hand(console: Console, entry: Entry, subjects: tuple[int, ...], out: Path) -> None:
    """Where each file is, where to put it, and how to check it."""
    from eegrecon.data.listings import link_of, path_of

    console.print(f"  By hand: from {entry.page} put", soft_wrap=True)
    for file in entry.wanted(subjects):
        size = "" if file.size is None else f"  ({file.size:,} bytes)"
        what = "all files" if file.path == "*" else link_of(entry, file) or file.path
        # Only the publisher knows the names that a pattern stands for; they stay as they are there.
        place = path_of(entry, file.folder if file.is_pattern else file.path)
        where = f"{'into' if file.is_pattern else 'as'} {out / place}"
        console.print(f"    {what}{size}\n      {where}", soft_wrap=True)
    words = ["eegrecon", "download", entry.name, "--out", str(out)]
    words += [word for subject in subjects for word in ("--subject", str(subject))]
    console.print(f"  Then check what is there (with a network): {shlex.join(words)}", soft_wrap=True)


def _next(console: Console, entry: Entry, subjects: tuple[int, ...], out: Path) -> None:
    """What else to know and do, and the commands that read it."""
    if entry.note:
        console.print(f"  {entry.note.format(out=out)}", soft_wrap=True)
    lines = [f"eegrecon inspect {shlex.quote(str(out / entry.holds))}"] if entry.holds else []
    if entry.layout is not None:
        source = f"source.name={entry.layout} source.args.path={out / entry.holds}"
        if entry.layout in OWN_SET:
            source = f"data.set={entry.set}_{entry.layout} {source}"
        subject = subjects[0] if subjects else entry.subjects[0]
        lines.append(f'make prepare-data EXP={entry.set}/atm_s SUBJECT={subject} ARGS="{source}"')
    lines += [entry.then.format(out=out)] if entry.then else []
    if lines:
        console.print("\n    ".join(["  Go on with:", *lines]), soft_wrap=True)


def _size(entry: Entry, subjects: tuple[int, ...]) -> str:
    size, exact = entry.bytes_of(subjects)
    if size is None:
        return "unknown"
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{'' if exact else 'about '}{size / unit:.1f} {name}"
    return f"{'' if exact else 'about '}{size:,} bytes"
