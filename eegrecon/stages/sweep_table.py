"""The table at the end of a sweep: one row a variant and protocol, from what the runs have written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.analysis.protocol import Protocol, unlike
from eegrecon.artifacts import MANIFEST, atomic_write, input_record, read_manifest, write_json
from eegrecon.config import config_hash
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.stages.sweep_plan import VERBS, Run, Sweep

if TYPE_CHECKING:
    import torch

PARTS = ("val", "test")
TOP = (1, 5)


@dataclass
class Row:
    """One variant under one protocol; scores are means over subjects, pictures and seeds, in percent with intervals.

    `scores` maps `val_top1`, `test_top5`, … to {value, low, high, over, n_way}. `left_out` names the runs that were
    made with another definition than the sweep has now: they do not count.
    """

    group: str
    variant: str
    protocol: str
    runs: int
    planned: int
    parameters: int | None = None
    trials_per_second: float | None = None
    train_seconds: float | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    stamp: dict[str, Protocol] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def write_table(runs: Sequence[Run], root: Path, sweep: Sweep) -> list[Row]:
    """Print the table, and write it to `<root>/table.{txt,csv,json,png}`.

    Args:
        runs: All runs of the sweep, finished or not.
        root: The sweep's directory.
        sweep: For its name.

    Raises:
        ArtifactError: A finished run's numbers cannot be read.
    """
    from rich.console import Console

    rows = collect(runs)
    finished = [row for row in rows if row.runs]
    text = io.StringIO()
    notes = [*_differences(finished), *_left_out(rows)]
    for console in (Console(width=150), Console(width=150, file=text)):
        for table in _tables(finished):
            console.print(table)
        for note in notes:
            console.print(note, markup=False, highlight=False)
        if not finished:
            console.print("No run of this sweep has finished.")
    root.mkdir(parents=True, exist_ok=True)
    with atomic_write(root / "table.txt") as file:
        file.write(text.getvalue().encode())
    with atomic_write(root / "table.csv") as file:
        file.write(_csv(finished).encode())
    write_json(root / "table.json", {"sweep": sweep.name, "notes": notes, "rows": [_plain(row) for row in finished]})
    if finished:
        draw(finished, root / "table.png", sweep.name)
    return rows


def collect(runs: Sequence[Run]) -> list[Row]:
    """Every row in the order of the sweep's file, from the runs that have finished."""
    keys = list(dict.fromkeys((run.group, run.variant, run.protocol) for run in runs))
    return [_row([run for run in runs if (run.group, run.variant, run.protocol) == key]) for key in keys]


def _row(runs: Sequence[Run]) -> Row:
    from eegrecon.metrics.functional.intervals import crossed_bootstrap

    first = runs[0]
    row = Row(first.group, first.variant, first.protocol, 0, len(runs))
    rates, seconds, found = [], [], []
    for run in runs:
        encoder, evaluations = Path(run.directory) / "encoder", _evaluations(run)
        if len(evaluations) < len(run.tested) or not (encoder / MANIFEST).is_file():
            continue
        if not _is_of(run, encoder, evaluations):
            row.left_out.append(run.name)
            continue
        row.runs += 1
        manifest = json.loads((encoder / "manifest.json").read_text(encoding="utf-8"))
        row.parameters = manifest["metrics"].get("n_parameters")
        seconds.append(manifest["wall_seconds"])
        if (rate := manifest["metrics"].get("train/trials_per_second")) is not None:
            rates.append(rate)
        for folder in evaluations:
            found.append((run, encoder, folder))
    if not found:
        return row
    row.train_seconds = sum(seconds) / len(seconds)
    row.trials_per_second = sum(rates) / len(rates) if rates else None
    for part in PARTS:
        row.stamp[part] = _stamp(found[0][1] if part == "val" else found[0][2])
        for k in TOP:
            hits, n_way = _hits(found, part, k)
            interval = crossed_bootstrap(hits, bounds=(0.0, 1.0))
            row.scores[f"{part}_top{k}"] = {
                "value": float(hits.mean()),
                "low": interval.low,
                "high": interval.high,
                "over": interval.over,
                "n_way": n_way,
            }
    return row


def _evaluations(run: Run) -> list[Path]:
    """The finished `evaluate` folders of a run, one a tested subject."""
    names = [f"{VERBS[1]}-sub-{n:02d}" for n in run.tested] if run.protocol == "joint" else [VERBS[1]]
    folders = [Path(run.directory) / name for name in names]
    return [folder for folder in folders if (folder / MANIFEST).is_file()]


def _is_of(run: Run, encoder: Path, evaluations: Sequence[Path]) -> bool:
    """Whether these results are what the run's configs would make now, the evaluations of this very encoder."""
    source = input_record(encoder)["manifest_sha256"]
    wanted = [(encoder, VERBS[0], run.tested[0])]
    wanted += [(folder, VERBS[1], subject) for folder, subject in zip(evaluations, run.tested, strict=True)]
    try:
        for folder, verb, subject in wanted:
            made = read_manifest(folder, verify=False)
            if made.config_hash != config_hash(run.config(verb, subject)):
                return False
            if folder != encoder and made.inputs.get("encoder", {}).get("manifest_sha256") != source:
                return False
    except (ArtifactError, ConfigError):  # of an older eegrecon; a variant that nobody runs now (`--only`), wrong
        return False
    return True


def _stamp(folder: Path) -> Protocol:
    return Protocol.from_metrics(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["protocol"])


def _hits(found: Sequence[tuple[Run, Path, Path]], part: str, k: int) -> tuple[torch.Tensor, int]:
    """Top-k hits (tested subjects, pictures), means over seeds (and over the subjects trained on, for validation)."""
    import torch

    from eegrecon.analysis.ranks import load_ranks

    by_subject: dict[tuple[int, ...], list[torch.Tensor]] = {}
    gallery, pictures = 0, None
    for run, encoder, folder in found:
        ranks = load_ranks(encoder / "ranks_val.safetensors" if part == "val" else folder / "ranks.safetensors")
        values = ranks.kway(ranks.gallery, k)
        index, place = torch.unique(ranks.image_index, return_inverse=True)
        sums = torch.zeros(len(index), dtype=torch.float64).scatter_add(0, place, values)
        mean = sums / torch.bincount(place)
        if pictures is not None and not torch.equal(index, pictures):
            raise ArtifactError(f"{folder} was scored on other pictures than the runs beside it: make both again.")
        gallery, pictures = ranks.gallery, index
        who = tuple(run.tested) if part == "val" else tuple(torch.unique(ranks.subject).tolist())
        by_subject.setdefault(who, []).append(mean)
    return torch.stack([torch.stack(seeds).mean(0) for seeds in by_subject.values()]), gallery


def _differences(rows: Sequence[Row]) -> list[str]:
    """What keeps rows of one group from being ranked against each other."""
    notes = []
    for group in dict.fromkeys(row.group for row in rows):
        mine = [row for row in rows if row.group == group]
        for row in mine[1:]:
            if row.protocol == mine[0].protocol and (found := unlike(mine[0].stamp["test"], row.stamp["test"])):
                notes.append(f"{group}: {row.variant} is not to be ranked with {mine[0].variant} ({'; '.join(found)})")
    short = [f"{row.group}/{row.variant}/{row.protocol} {row.runs}" for row in rows if row.runs < row.planned]
    if short:
        notes.append("Not all runs have finished: " + ", ".join(short))
    return notes


def _left_out(rows: Sequence[Row]) -> list[str]:
    """The runs whose results are of another definition, and what makes them count again."""
    names = [name for row in rows for name in row.left_out]
    if not names:
        return []
    return [
        "Left out, made with another config, encoder or eegrecon than the sweep has now (undo the change, or remove "
        "their directories to make them again): " + ", ".join(names)
    ]


def _tables(rows: Sequence[Row]) -> list[Any]:
    from rich.table import Table

    tables = []
    for group, protocol in dict.fromkeys((row.group, row.protocol) for row in rows):
        mine = [row for row in rows if (row.group, row.protocol) == (group, protocol)]
        test = mine[0].stamp["test"]
        over = mine[0].scores["test_top1"]["over"]
        table = Table(
            title=f"{group} · {protocol} · {test.set}, {test.repetitions} repetitions averaged, {len(test.channels)} "
            f"channels, {test.window[0]:g}–{test.window[1]:g} s, {test.selection}",
            caption=f"top-k in % [95 %, bootstrap over {over}], means over seeds; chance {100 / test.gallery_n:.2g} / "
            f"{500 / test.gallery_n:.2g} % (test)",
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("variant", no_wrap=True)
        names = [f"{part} top-{k}\n({mine[0].scores[f'{part}_top{k}']['n_way']}-way)" for part in PARTS for k in TOP]
        for name in ("runs", "parameters", "trials/s", "train s", *names):
            table.add_column(name, justify="right", no_wrap=True)
        for row in mine:
            scores = [_score(row.scores[f"{part}_top{k}"]) for part in PARTS for k in TOP]
            table.add_row(row.variant, *_facts(row), *scores)
        tables.append(table)
    return tables


def _facts(row: Row) -> list[str]:
    return [
        str(row.runs),
        "–" if row.parameters is None else f"{row.parameters:,}",
        "–" if row.trials_per_second is None else f"{row.trials_per_second:,.0f}",
        "–" if row.train_seconds is None else f"{row.train_seconds:.0f}",
    ]


def _score(entry: dict[str, Any]) -> str:
    return f"{100 * entry['value']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    names = [f"{part}_top{k}" for part in PARTS for k in TOP]
    head = ["group", "variant", "protocol", "runs", "planned", "parameters", "trials_per_second", "train_seconds"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])
    for row in rows:
        scores = [row.scores[name][key] for name in names for key in ("value", "low", "high")]
        writer.writerow([*(getattr(row, name) for name in head), *(f"{value:.6f}" for value in scores)])
    return text.getvalue()


def _plain(row: Row) -> dict[str, Any]:
    stamps = {part: stamp.to_dict() for part, stamp in row.stamp.items()}
    return {**vars(row), "stamp": stamps}


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Test top-1 of every row with its interval, one panel a group and protocol."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row.group, row.protocol) for row in rows))
    most = max(sum((row.group, row.protocol) == panel for row in rows) for panel in panels)
    figure = Figure(figsize=(4.2 * len(panels) + 1.5, 1.6 + 0.32 * most), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (group, protocol) in zip(axes, panels, strict=True):
        mine = [row for row in rows if (row.group, row.protocol) == (group, protocol)]
        for place, row in enumerate(mine):
            score = row.scores["test_top1"]
            axis.plot([100 * score["low"], 100 * score["high"]], [place, place], color="tab:blue", linewidth=2)
            axis.plot(100 * score["value"], place, "o", color="tab:blue")
        n_way = mine[0].scores["test_top1"]["n_way"]
        axis.axvline(100 / n_way, color="grey", linestyle=":", linewidth=1)
        axis.set_yticks(range(len(mine)), [row.variant for row in mine])
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_xlabel(f"test top-1 in %, {n_way}-way (dotted: chance)")
        axis.set_title(f"{group}\n{protocol}", fontsize=10)
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
