"""A comparison as text, CSV and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from eegrecon.analysis.comparison import Comparison, Difference, Summary
from eegrecon.metrics.functional.paired import PairedTest

SUFFIX = "_ridge"


def shown_metrics(comparison: Comparison, chosen: Sequence[str] = ()) -> list[str]:
    """The columns: `chosen`, or top-1 and top-5 in the largest gallery, MRR, median rank and ridge's top-1."""
    if chosen:
        return list(chosen)
    split, _, rest = comparison.main.partition("/")
    gallery = rest.rpartition("_")[2]
    names = [f"retrieval_{name}_{gallery}" for name in ("top1", "top5", "mrr", "median_rank")]
    names += [f"retrieval_top1_{gallery}{SUFFIX}", f"classification_top1_{gallery}"]
    return [name for name in (f"{split}/{name}" for name in names) if name in comparison.metrics]


def tables(comparison: Comparison, chosen: Sequence[str] = (), unlike: Sequence[str] = ()) -> list[Table]:
    """Two tables: one row a group, the best first; then every subject.

    Args:
        comparison: What was compared.
        chosen: Metrics to show, empty for the usual ones.
        unlike: Sentences on protocols that differ and were allowed to, for the title.
    """
    return [_overview(comparison, chosen, unlike), _per_subject(comparison)]


def _overview(comparison: Comparison, chosen: Sequence[str], unlike: Sequence[str]) -> Table:
    groups, main = comparison.groups, comparison.main
    columns = shown_metrics(comparison, chosen)
    single = len(groups) == 1
    first = groups[0]
    title = first.protocol.describe()
    if unlike:
        title += "\nnot of one protocol: " + " ".join(unlike)
    table = Table(title=Text(title), title_justify="left", caption=Text(_notes(comparison)), caption_justify="left")
    table.add_column("run", no_wrap=True)
    table.add_column("subjects\n× seeds", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(_header(name), justify="right", no_wrap=True)
    if not single:
        table.add_column(Text(f"{main.partition('_')[2]} minus\n{first.name}"), justify="right", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
    for place in comparison.ranking():
        group, found = groups[place], comparison.summaries[place]
        seeds = sorted({run.seed for run in group.runs})
        row = [group.name, f"{len(group.protocol.subjects)} × {len(seeds)}"]
        row += [summary_text(found[name]) for name in columns]
        if not single:
            row += _against(comparison.differences[place].get(main))
        table.add_row(*(Text(value) for value in row))
    return table


def _header(name: str) -> Text:
    """The metric's name without the split, in two lines: `retrieval_` and `top1_200way`."""
    task, _, number = name.partition("/")[2].partition("_")
    return Text(f"{task}_\n{number}" if number else task)


def _notes(comparison: Comparison) -> str:
    """What the intervals and p values mean, for the caption."""
    over = {found[comparison.main].over for found in comparison.summaries} - {""}
    notes = []
    if over:
        notes.append(f"[95 %] by crossed bootstrap over {' or '.join(sorted(over))}")
        if "pictures" in over:
            notes.append("other subjects may differ: fewer than 5 were tested")
    tests = [found[comparison.main].test for found in comparison.differences if comparison.main in found]
    found = [test for test in tests if test is not None]
    if found:
        floors = sorted({(test.n_different, test.floor) for test in found})
        lowest = ", ".join(f"{floor:.3g} with {n} subjects that differ" for n, floor in floors)
        notes.append(
            f"p: exact Wilcoxon signed-rank over subjects, two-sided, not corrected for {len(found)} "
            f"comparison{'s' * (len(found) > 1)}; it cannot be below {lowest}"
        )
    return "; ".join(notes)


def _per_subject(comparison: Comparison) -> Table:
    main = comparison.main
    subjects = sorted({subject for found in comparison.summaries for subject in found[main].per_subject})
    table = Table(title=Text(f"{main}, each subject"), title_justify="left")
    table.add_column("run", no_wrap=True)
    for subject in subjects:
        table.add_column(f"{subject:02d}", justify="right", no_wrap=True)
    for place in comparison.ranking():
        values = comparison.summaries[place][main].per_subject
        cells = [f"{values[subject]:.3f}" if subject in values else "–" for subject in subjects]
        table.add_row(Text(comparison.groups[place].name), *cells)
    return table


def summary_text(summary: Summary) -> str:
    """`0.262 [0.210, 0.315]`."""
    if summary.low is None or summary.high is None:
        return f"{summary.value:.3f}"
    return f"{summary.value:.3f} [{summary.low:.3f}, {summary.high:.3f}]"


def _against(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["–", "–"]
    text = f"{difference.value:+.3f}"
    if difference.low is not None and difference.high is not None:
        text += f" [{difference.low:+.3f}, {difference.high:+.3f}]"
    return [text, "–" if difference.test is None else f"{difference.test.p:.3g}"]


def csv_text(comparison: Comparison) -> str:
    """Every number: one line a group and metric, with interval, and the difference from the first with its test."""
    head = ["run", "metric", "value", "low", "high", "over", "subjects", "seeds", "difference", "difference_low"]
    head += ["difference_high", "p", "p_floor", "n_different"]
    rows = []
    for group, found, against in zip(comparison.groups, comparison.summaries, comparison.differences, strict=True):
        sizes = [len(group.protocol.subjects), len({run.seed for run in group.runs})]
        for name in comparison.metrics:
            summary, other = found[name], against.get(name)
            row = [group.name, name, summary.value, summary.low, summary.high, summary.over, *sizes]
            if other is not None:
                test = other.test or PairedTest(0, 0, 0.0, 1.0, 1.0)
                row += [other.value, other.low, other.high, test.p, test.floor, test.n_different]
            rows.append(row)
    return _csv(head, rows)


def subjects_csv(comparison: Comparison) -> str:
    """Every number of every subject: one line a group, metric and subject."""
    rows = [
        [group.name, name, subject, value]
        for group, found in zip(comparison.groups, comparison.summaries, strict=True)
        for name in comparison.metrics
        for subject, value in found[name].per_subject.items()
    ]
    return _csv(["run", "metric", "subject", "value"], rows)


def _csv(head: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        values = [f"{value:.6g}" if isinstance(value, float) else "" if value is None else value for value in row]
        writer.writerow([*values, *[""] * (len(head) - len(values))])
    return text.getvalue()


def comparison_figure(comparison: Comparison) -> Any:
    """Draw the ranking metric: a dot a group with its interval, and a small dot a subject."""
    from matplotlib.figure import Figure

    main, order = comparison.main, comparison.ranking()
    figure = Figure(figsize=(8, 1.8 + 0.45 * len(order)), layout="constrained")
    axis = figure.subplots()
    for place, i in enumerate(order):
        summary = comparison.summaries[i][main]
        values = list(summary.per_subject.values())
        axis.plot(values, [place] * len(values), ".", color="0.65", label="one subject" if place == 0 else None)
        if summary.low is not None and summary.high is not None:
            label = "95 %" if place == 0 else None
            axis.plot([summary.low, summary.high], [place, place], color="#b03060", linewidth=2, label=label)
        axis.plot(summary.value, place, "o", color="#b03060", label="mean" if place == 0 else None)
    n_way = int(main.rpartition("_")[2].removesuffix("way"))
    axis.axvline(1 / n_way, color="0.3", linewidth=0.8, linestyle=":", label="chance")
    axis.set_yticks(range(len(order)), [comparison.groups[i].name for i in order])
    axis.set_ylim(len(order) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel(main)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure
