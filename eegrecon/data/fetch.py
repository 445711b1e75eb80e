"""One file from the web to the disk: continued after a cut, complete and verified before it gets its name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from eegrecon.artifacts import write_json
from eegrecon.data.verify import Progress, Wrong, silent, verify
from eegrecon.data.web import Passing, RangeRefused, again, open_url
from eegrecon.errors import DataError

BLOCK = 1 << 20
SPARE = 64 << 20  # left free on the disk


@dataclass(frozen=True)
class Remote:
    """One file that a publisher offers.

    Attributes:
        path: Where it goes, below the chosen folder, with slashes.
        url: Its address.
        size: Its size in bytes, as the publisher's listing or the catalogue says; None when neither does.
        checksum: "sha256:…", "md5:…" or "git-sha1:…" (git's blob hash) as the publisher gives it.
    """

    path: str
    url: str
    size: int | None = None
    checksum: str | None = None


@dataclass(frozen=True)
class Fetched:
    """A file that is there, complete.

    Attributes:
        path: The file.
        size: Its bytes.
        verified: What it was verified by: "size", the name of a checksum, "archive" (a zip's own sums).
        was_there: Whether it had been there before.
    """

    path: Path
    size: int
    verified: tuple[str, ...]
    was_there: bool


def place(folder: Path, path: str) -> Path:
    """Where a listed path lies below `folder`.

    Raises:
        DataError: It would lie anywhere else. Listings come from the network, so this is not taken on trust.
    """
    parts = path.split("/")
    bad = any(part in {"", ".", ".."} or set(part) & set('\\:*?"<>|') or not part.isprintable() for part in parts)
    if bad:
        raise DataError(f"The publisher lists a file {path!r}, which is no path below {folder}: it is not downloaded.")
    return folder.joinpath(*parts)


def fetch(remote: Remote, folder: Path, *, progress: Progress | None = None, pause: float = 1.0) -> Fetched:
    """Download a file, or verify the one that is there.

    The bytes gather in `.<name>.partial` beside the file, with a note of what the server said about them: a later call
    continues there when the server still has the same file, and starts again when it has not. Size and checksum are
    verified before the file gets its name, so a file of that name is complete.

    Args:
        remote: What to fetch.
        folder: Below it.
        progress: Called with "downloading" or "verifying", the bytes so far, and all bytes (None when unknown).
        pause: Seconds before the first retry; doubles at each.

    Raises:
        Unreachable: There is no way to the server.
        DataError: The file is not there, has another size or content, or the disk is full.
    """
    target, tell = place(folder, remote.path), progress or silent
    if target.exists():
        return _there(remote, target, tell, pause)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{target.parent} cannot be made ({error.strerror}): give another --out.") from error
    unfinished = target.with_name(f".{target.name}.partial")
    note = target.with_name(f".{target.name}.partial.json")
    while True:
        with _locked(unfinished) as file:
            before = file.seek(0, os.SEEK_END)
            size = again(partial(_download, remote, file, note, tell), remote.path, pause=pause)
            try:
                verified = verify(remote.path, remote.checksum, unfinished, size, tell)
            except Wrong as error:
                unfinished.unlink()
                note.unlink(missing_ok=True)
                if before:  # what an earlier call left may have been the fault
                    continue
                raise DataError(f"{error}; what was downloaded was removed, so run the same command again.") from error
            os.fsync(file.fileno())
            unfinished.replace(target)
            note.unlink(missing_ok=True)
            return Fetched(target, target.stat().st_size, verified, was_there=False)


def size_on_disk(target: Path) -> int:
    """Bytes on disk of a file or of what there is of it."""
    for path in (target, target.with_name(f".{target.name}.partial")):
        if path.is_file():
            return path.stat().st_size
    return 0


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        DataError: Less than `needed` bytes are free where `folder` is or will be.
    """
    above = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(above).free
    if needed and free < needed + SPARE:
        raise DataError(
            f"{what} needs {needed / 1e9:.2f} GB more, but only {free / 1e9:.2f} GB are free at {above}: make room, or "
            "give another --out; what is there is kept."
        )


@contextlib.contextmanager
def _locked(unfinished: Path) -> Iterator[IO[bytes]]:
    try:
        file = unfinished.open("a+b", buffering=0)  # no buffer that would fail again when it is closed
    except OSError as error:
        raise DataError(f"{unfinished} cannot be written ({error.strerror}): give another --out.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not unfinished.exists() or not os.path.samestat(os.fstat(file.fileno()), unfinished.stat())
        except BlockingIOError:
            taken = True
        except OSError:  # some network file systems have no locks
            taken = False
        if taken:
            name = unfinished.name.removeprefix(".").removesuffix(".partial")
            raise DataError(f"Another process is downloading {name} to {unfinished.parent}: wait for it.")
        try:
            yield file
        finally:
            if unfinished.exists() and not unfinished.stat().st_size:
                unfinished.unlink()


def _download(remote: Remote, file: IO[bytes], note: Path, tell: Progress) -> int | None:
    """One request that brings the rest of the file; returns the whole size, None when nobody says it."""
    have, known = file.seek(0, os.SEEK_END), _read_note(note, remote.url)
    size = remote.size if remote.size is not None else known.get("size")
    if have and have == size:
        return size
    headers = {}
    # Bytes of another version would be joined unseen, unless the server knows our version or a checksum tells.
    if have and (size is None or have < size) and known:
        if known.get("validator"):
            headers = {"Range": f"bytes={have}-", "If-Range": str(known["validator"])}
        elif remote.checksum:
            headers = {"Range": f"bytes={have}-"}
    if not headers:
        have = _restart(file)
    try:
        response = open_url(remote.url, headers)
    except RangeRefused as refused:
        _restart(file)
        raise Passing("the server would not continue") from refused
    with response:
        return _receive(remote, response, file, have, known, note, tell)


def _receive(
    remote: Remote, response: Any, file: IO[bytes], have: int, known: dict[str, Any], note: Path, tell: Progress
) -> int | None:
    validator = _validator(response.headers)
    if response.status == 206:
        start, total = _content_range(response.headers.get("Content-Range"))
        total = known.get("size") if total is None else total
        changed = validator is not None and known.get("validator") not in {None, validator}
        if not have or start != have or changed:
            _restart(file)
            raise Passing("the server continued with another file or place")
    elif response.status == 200:
        have, total = 0, _number(response.headers.get("Content-Length"))
    else:
        raise DataError(f"{remote.url} answers {response.status}, where the file was expected: try again later.")
    if remote.size is not None and total not in {None, remote.size}:
        raise DataError(
            f"{remote.url} has {total:,} bytes, but {remote.size:,} were expected of {remote.path}: the publisher has "
            "changed the file, or a page stands in for it."
        )
    if response.headers.get_content_type() == "text/html" and not remote.path.endswith((".html", ".htm")):
        raise DataError(
            f"{remote.url} answers with a web page instead of {remote.path}: it wants a login or a click; fetch it by "
            "hand, as eegrecon download --list NAME says."
        )
    size = remote.size if remote.size is not None else total
    if size is None and remote.checksum is None and not remote.path.endswith(".zip"):
        raise DataError(
            f"Nobody says how large {remote.path} is, neither the catalogue nor {remote.url}, so it could not be "
            "verified: fetch it by hand, as eegrecon download --list NAME says."
        )
    check_disk(note.parent, (size or 0) - have, remote.path)
    write_json(note, {"url": remote.url, "validator": validator, "size": size})
    if not have:
        _restart(file)
    tell("downloading", have, size)
    try:
        while block := response.read1(BLOCK):
            _write(file, block, remote.path)
            have += len(block)
            tell("downloading", have, size)
    except (OSError, http.client.HTTPException) as error:
        if have != size:
            raise Passing("the connection broke", reached=have) from error
    if size is not None and have < size:
        raise Passing(f"the connection ended at byte {have:,} of {size:,}", reached=have)
    return size


def _write(file: IO[bytes], block: bytes, name: str) -> None:
    rest = memoryview(block)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        why = "the disk is full" if full else f"it cannot be written ({error.strerror})"
        raise DataError(f"{name} was not finished, because {why}: make room and run the same command again.") from error


def _restart(file: IO[bytes]) -> int:
    file.truncate(0)  # it is opened for appending: what is written next is at the start
    return 0


def _read_note(note: Path, url: str) -> dict[str, Any]:
    """What the server said about the unfinished file, if it came from there."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and known.get("url") == url else {}


def _validator(headers: Any) -> str | None:
    """What `If-Range` may hold: a strong ETag, else the date of the last change (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    changed = headers.get("Last-Modified")
    return str(changed) if changed else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _content_range(text: str | None) -> tuple[int | None, int | None]:
    """Start and total of "bytes 5-9/10"."""
    span, _, total = (text or "").removeprefix("bytes ").partition("/")
    return _number(span.partition("-")[0]), _number(total)


def _there(remote: Remote, target: Path, tell: Progress, pause: float) -> Fetched:
    """Verify a file of an earlier call, or of somebody who put it there."""
    have, size = target.stat().st_size if target.is_file() else -1, remote.size
    if size is None:

        def ask() -> int | None:
            with open_url(remote.url) as response:
                return _number(response.headers.get("Content-Length"))

        size = again(ask, remote.path, pause=pause)
    try:
        verified = verify(remote.path, remote.checksum, target, size, tell)
    except Wrong as error:
        raise DataError(f"{error}; it was there before: move it away, or give another --out.") from error
    return Fetched(target, have, verified, was_there=True)
