"""`inspect`: say what a file or folder is, what is in it and what is wrong with it, and draw its mean response.

A tool, not a stage: it reads, executes nothing of what it reads, and writes one PNG.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eegrecon.analysis.contents import Contents

MOST_PROBLEMS = 20  # shown; the rest is counted


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("path", metavar="PATH", help="a file or folder: recordings, features, stores, runs, pictures")
    parser.add_argument("--png", metavar="FILE", default="inspect.png", help="where to draw; default inspect.png")


def run(options: argparse.Namespace) -> int:
    """Print what `options.path` is; draw its evoked response where it holds trials.

    Returns:
        0, or 2 when something is wrong with it.

    Raises:
        DataError: There is nothing at this path, or nothing that eegrecon knows.
    """
    from eegrecon.analysis.evoked import evoked_figure, save_figure
    from eegrecon.analysis.examine import examine
    from eegrecon.stages.progress import progress_bars

    path = Path(options.path)
    with progress_bars() as bars:
        task = bars.add_task(f"reading {path.name}", total=None)
        found = examine(path, lambda done, total: bars.update(task, completed=done, total=total))
    _print(path, found)
    if found.scan is not None:
        save_figure(evoked_figure(found.scan, f"{found.kind}: {path}"), Path(options.png))
        sys.stderr.write(f"eegrecon: drew the mean response: {options.png}\n")
    if found.problems:
        sys.stderr.write(f"eegrecon: inspect: {len(found.problems)} problem(s) in {path}\n")
        return 2
    return 0


def _print(path: Path, found: Contents) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(f"{path}: {found.kind}"), style="bold", soft_wrap=True)
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in found.facts.items():
        table.add_row(Text(name), Text(text))
    console.print(table)
    for problem in found.problems[:MOST_PROBLEMS]:
        console.print(Text(f"✗ {problem}"), style="red", soft_wrap=True)
    if len(found.problems) > MOST_PROBLEMS:
        console.print(f"… and {len(found.problems) - MOST_PROBLEMS} more")
    if not found.problems:
        console.print("nothing is wrong with it", style="green")
