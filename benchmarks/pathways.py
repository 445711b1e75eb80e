"""What each part of the chain adds to the pictures: rows of compositions over seeds, with paired differences.

    python benchmarks/pathways.py ROWS.yaml --out DIR [--part val] [--only NAME ...] [--table]

ROWS.yaml names an experiment, a subject, seeds, a template of the runs whose `encoder/` (and `low_level/`) are shared,
the row that others are compared with, and the rows: overrides of train-prior and of reconstruct. A row without `prior`
shares the prior of the row `reference`. Every stage is left alone where it is up to date, so a killed benchmark goes
on. DIR gets a run for each row and seed, `table-PART.md` and `grid-PART.png`. Settings are chosen with `--part val`:
pictures of held-out training concepts, without the test set.

Scores are means over seeds; their interval, and that of the difference to the reference, is a bootstrap over pictures
of the means over seeds (one subject: it says nothing of others). Ceiling and shuffled are the row's own controls.
`caption_top1` says how often a caption's nearest name among those of all pictures is the right one, `caption_2way` how
often the right name is nearer than another one.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eegrecon.analysis.ranks import load_ranks
from eegrecon.callbacks.grids import picture_grid, save_picture
from eegrecon.callbacks.reconstruction import picture_file
from eegrecon.cli import main as eegrecon
from eegrecon.config import parse_yaml
from eegrecon.data import ImageSet
from eegrecon.metrics.functional.intervals import crossed_bootstrap
from eegrecon.stages.evaluate import CEILING, PICTURES

SHARED = ("encoder", "low_level")
SHOWN = 16
CONTROLS = ("", "_ceiling", "_shuffled")
CAPTION = {"caption_top1": 0, "caption_2way": 2}  # ways of retrieval by caption; 0: all pictures' names


def run_row(plan: Mapping[str, Any], row: str, seed: int, out: Path, part: str) -> None:
    """Make the run of a row and seed, as far as it is not there."""
    run, words = out / row / f"seed-{seed}", plan["rows"][row] or {}
    run.mkdir(parents=True, exist_ok=True)
    source = Path(plan["runs"].format(seed=seed)).resolve()
    for stage in SHARED:
        if (source / stage).is_dir() and not (run / stage).exists():
            (run / stage).symlink_to(source / stage)
    shared = ["--exp", plan["experiment"], "--subject", str(plan["subject"]), "--run", str(run), f"seed={seed}"]
    prior = run / "prior"
    if "prior" in words or row == plan["reference"]:
        if prior.is_symlink():  # an earlier list of rows shared it
            prior.unlink()
        call(["train-prior", *shared, *words.get("prior", []), "trainer.enable_progress_bar=false"])
    elif prior.is_dir() and not prior.is_symlink():
        sys.exit(
            f"{prior} is of an earlier list of rows, in which {row!r} had a prior of its own: choose another --out."
        )
    elif not prior.is_symlink():
        prior.symlink_to((out / plan["reference"] / f"seed-{seed}" / "prior").resolve())
    if not prior.exists():
        sys.exit(f"{prior} leads nowhere: make the row {plan['reference']!r} first.")
    call(["reconstruct", *shared, *words.get("reconstruct", []), f"part={part}", "trainer.enable_progress_bar=false"])


def call(words: Sequence[str]) -> None:
    """One verb of the command line in this process."""
    if code := eegrecon(list(words)):
        sys.exit(f"eegrecon {' '.join(words)} ended with {code}")


def scores_of(folder: Path) -> dict[str, Tensor]:
    """Name to (pictures,) scores, from `scores.csv`."""
    rows = list(csv.DictReader((folder / "scores.csv").read_text(encoding="utf-8").splitlines()))
    names = [name for name in rows[0] if not name.startswith("image_")]
    return {name: torch.tensor([float(row[name]) for row in rows], dtype=torch.float64) for name in names}


def folders_of(plan: Mapping[str, Any], rows: Sequence[str], out: Path, part: str) -> dict[str, list[Path]]:
    """Row to its finished directories, one a seed, of the rows that have all."""
    name = "reconstruct" if part == "test" else f"reconstruct-{part}"
    found = {row: [out / row / f"seed-{seed}" / name for seed in plan["seeds"]] for row in rows}
    return {row: folders for row, folders in found.items() if all((f / "scores.csv").is_file() for f in folders)}


def table(plan: Mapping[str, Any], rows: Sequence[str], out: Path, part: str) -> str:
    """The rows as Markdown: score [95 %] (difference to the reference [95 %]), ceiling and shuffled beside it."""
    found = folders_of(plan, rows, out, part)
    means = {row: mean_scores(folders) for row, folders in found.items()}
    reference = means.get(plan["reference"])
    names = plan["metrics"]
    lines = ["| row | " + " | ".join([*names, *CAPTION]) + " |", "| --- |" + " --- |" * (len(names) + len(CAPTION))]
    for row, scores in means.items():
        cells = []
        for name in names:
            cell = interval(scores[name])
            if reference is not None and row != plan["reference"]:
                cell += f"; difference {interval(scores[name] - reference[name], signed=True)}"
            cells.append(cell + controls(found[row], f"{part}/{name}"))
        lines.append(f"| {row} | " + " | ".join(cells + caption_cells(found[row])) + " |")
    return "\n".join(lines) + "\n"


def caption_cells(folders: Sequence[Path]) -> list[str]:
    """The cells of `CAPTION`: what captions name, and the same of the ceiling's and of captions dealt to others."""
    wanted = [f"ranks_caption{end}.safetensors" for end in CONTROLS]
    written = [json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["outputs"] for folder in folders]
    if any(name not in outputs for name in wanted for outputs in written):
        return ["–"] * len(CAPTION)
    cells = []
    for k_way in CAPTION.values():
        words = []
        for end in CONTROLS:
            each = [load_ranks(folder / f"ranks_caption{end}.safetensors") for folder in folders]
            hits = torch.stack([ranks.kway(k_way or ranks.gallery) for ranks in each]).mean(0)
            words.append(f"{end.removeprefix('_')} {interval(hits)}".strip())
        cells.append("; ".join(words))
    return cells


def mean_scores(folders: Sequence[Path]) -> dict[str, Tensor]:
    """Name to (pictures,) means over seeds."""
    each = [scores_of(folder) for folder in folders]
    return {name: torch.stack([one[name] for one in each]).mean(0) for name in each[0]}


def interval(scores: Tensor, signed: bool = False) -> str:
    """Mean and its 95 % bootstrap interval over pictures."""
    found = crossed_bootstrap(scores[None])
    form = "+.3f" if signed else ".3f"
    return f"{float(scores.mean()):{form}} [{found.low:{form}}, {found.high:{form}}]"


def controls(folders: Sequence[Path], name: str) -> str:
    """Ceiling and shuffled of a score."""
    return "".join(f"; {end[1:]} {control(folders, name + end)}" for end in CONTROLS if end)


def control(folders: Sequence[Path], name: str) -> str:
    """A control's mean over seeds."""
    values = [json.loads((f / "metrics.json").read_text(encoding="utf-8"))["metrics"].get(name) for f in folders]
    return "–" if None in values else f"{sum(value['value'] for value in values) / len(values):.3f}"


def draw(plan: Mapping[str, Any], rows: Sequence[str], out: Path, part: str) -> None:
    """The same pictures in every row and from their true embeddings, first seed, chosen at even distances."""
    folders = {row: found[0] for row, found in folders_of(plan, rows, out, part).items()}
    if not folders:
        return
    first = list(csv.DictReader((next(iter(folders.values())) / "scores.csv").read_text().splitlines()))
    chosen = [first[round(at)] for at in torch.linspace(0, len(first) - 1, min(SHOWN, len(first))).tolist()]
    ids, images = [row["image_id"] for row in chosen], ImageSet.from_root(Path("data") / plan["set"])
    shown = {"seen": [images.load(int(row["image_index"])) for row in chosen]}
    for row, folder in folders.items():
        shown[row] = [Image.open(folder / PICTURES / picture_file(image_id)) for image_id in ids]
    best = folders.get(plan["reference"])
    if best is not None:
        shown["ceiling"] = [Image.open(best / CEILING / picture_file(image_id)) for image_id in ids]
    captions = [images.concept_of(int(row["image_index"])).replace("_", " ") for row in chosen]
    grid = picture_grid(shown, captions, columns=8, cell=96, title="one row a composition")
    save_picture(grid, out / f"grid-{part}.png")


def main() -> None:
    """Make the rows and their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("test", "val"), default="test")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--table", action="store_true", help="make the table of what is there, and nothing else")
    options = parser.parse_args()
    plan = parse_yaml(options.rows.read_text(encoding="utf-8"))
    rows = options.only or list(plan["rows"])
    if not options.table:
        for seed in plan["seeds"]:
            for row in rows:
                run_row(plan, row, seed, options.out, options.part)
    text = table(plan, rows, options.out, options.part)
    (options.out / f"table-{options.part}.md").write_text(text, encoding="utf-8")
    draw(plan, rows, options.out, options.part)
    print(text)


if __name__ == "__main__":
    main()
