"""`compare`: finished runs side by side, ranked when they were measured alike and refused when they were not.

A tool, not a stage: it reads what `evaluate` and `reconstruct` wrote and writes a table as text, CSV and PNG.
"""

from __future__ import annotations

import argparse
import glob
import io
import sys
from dataclasses import fields
from pathlib import Path

from eegrecon.errors import ArtifactError, ConfigError

WIDE = 240


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    runs = "runs, folders of runs or patterns such as 'runs/pocket/sub-*'; the first is the reference"
    add("runs", nargs="+", metavar="RUN", help=runs)
    add(
        "--allow", action="append", default=[], metavar="FIELD", help="rank although this field of the protocol differs"
    )
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="show these numbers, such as test/retrieval_mrr_200way",
    )
    add("--draws", type=int, default=2000, metavar="N", help="resamples of the bootstrap; default 2000")
    add("--out", default="comparison", metavar="DIR", help="where table.txt, table.csv, subjects.csv and table.png go")


def run(options: argparse.Namespace) -> int:
    """Print the table, best first, and write it.

    Returns:
        0, or 2 when the runs were not measured alike: one sentence a difference, and no table.

    Raises:
        ArtifactError: A run is unfinished or broken, or runs of one experiment contradict each other.
        ConfigError: `--allow` or `--metric` names nothing.
    """
    from rich.console import Console

    from eegrecon.analysis.comparison import compare, differing
    from eegrecon.analysis.comparison_tables import comparison_figure, csv_text, subjects_csv, tables
    from eegrecon.analysis.evoked import save_figure
    from eegrecon.analysis.run_scores import find_stages, group_runs, read_scores
    from eegrecon.artifacts import atomic_write

    _check(options)
    stages = [stage for path in _paths(options.runs) for stage in find_stages(path)]
    groups = group_runs([read_scores(stage) for stage in stages])
    sentences = differing(groups, options.allow)
    if sentences:
        for sentence in sentences:
            sys.stderr.write(f"eegrecon: compare: {sentence}\n")
        names = " ".join(f"--allow {name}" for name in dict.fromkeys(_field(sentence) for sentence in sentences))
        sys.stderr.write(f"eegrecon: compare: evaluate them alike, or rank them all the same with {names}\n")
        return 2
    comparison = compare(groups, draws=options.draws)
    if wrong := [name for name in options.metric if name not in comparison.metrics]:
        raise ConfigError(
            f"--metric {', '.join(wrong)}: not all of these runs have it; they share {', '.join(comparison.metrics)}."
        )
    text = io.StringIO()
    width = max(WIDE, Console().width)  # a table that is cut says less than one that the terminal wraps
    for console in (Console(width=width), Console(width=width, file=text)):
        for table in tables(comparison, options.metric, differing(groups)):
            console.print(table)
    out = Path(options.out)
    for name, content in (("txt", text.getvalue()), ("csv", csv_text(comparison))):
        with atomic_write(out / f"table.{name}") as file:
            file.write(content.encode())
    with atomic_write(out / "subjects.csv") as file:
        file.write(subjects_csv(comparison).encode())
    save_figure(comparison_figure(comparison), out / "table.png")
    sys.stderr.write(f"eegrecon: compare: wrote table.txt, table.csv, subjects.csv and table.png to {out}\n")
    return 0


def _check(options: argparse.Namespace) -> None:
    from eegrecon.analysis.protocol import Protocol

    known = [item.name for item in fields(Protocol)]
    if wrong := [name for name in options.allow if name not in known]:
        raise ConfigError(f"--allow {', '.join(wrong)} is no field of the protocol: choose from {', '.join(known)}.")
    if options.draws < 100:
        raise ConfigError(f"--draws is {options.draws}, expected at least 100 resamples.")


def _paths(words: list[str]) -> list[Path]:
    """What the arguments name; patterns that the shell left alone are expanded."""
    paths = []
    for word in words:
        found = [Path(word)] if Path(word).exists() or not glob.has_magic(word) else sorted(map(Path, glob.glob(word)))
        if not found:
            raise ArtifactError(f"Nothing fits {word!r}: name finished runs, such as runs/pocket/sub-01/seed-0.")
        paths += found
    return paths


def _field(sentence: str) -> str:
    return sentence.partition(" differ in ")[2].split(" ", 1)[0]
