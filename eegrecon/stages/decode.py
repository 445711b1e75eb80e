"""`decode`: a finished run's pictures of the trials in a file, an MNE epochs file or a plain `.npy` array.

A tool, not a stage: it needs no set and no config, and knows nothing of what was seen, so it scores nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from eegrecon.pipeline import EEGToImagePipeline

RECORD, EMBEDS, GRID = "decode.json", "embeds.safetensors", "grid.png"
GRID_TRIALS, COLUMNS, CELL = 24, 8, 128


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help="…-epo.fif: MNE epochs, time 0 is picture onset; or a .npy of numbers (trials, channels, samples) in the "
        "unit, channel order and window of the encoder's training trials (data in its manifest.json)",
    )
    parser.add_argument("--run", metavar="DIR", required=True, help="a run, what save_pretrained wrote, or a hub id")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument("--subject", metavar="N", type=int, default=0, help="whose trials they are; default 0: unknown")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the noise; default 0")
    parser.add_argument("--images", metavar="N", type=int, default=1, help="pictures of each trial; default 1")
    parser.add_argument("--batch-size", metavar="N", type=int, help="pictures at a time; default: the run's")
    parser.add_argument("--device", default="cpu", help="a torch device; default cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that decode wrote")


def run(options: argparse.Namespace) -> int:
    """Write `NNNN.png` for each trial (and `NNNN__draw-K.png`), `grid.png`, `embeds.safetensors` and `decode.json`.

    The folder appears whole or not at all. A picture depends on its trial, its number, the subject and the seed.

    Returns:
        0.

    Raises:
        ArtifactError: The run is unfinished or damaged, or the folder holds something else.
        ConfigError: An option makes no sense, or not enough memory for the batch size.
        DataError: The trials are not what the encoder was trained on.
    """
    path, out = Path(options.file), Path(options.out)
    for name in ("images", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1.")
    if options.subject < 0:
        raise ConfigError(f"--subject is {options.subject}, expected an id from 1, or 0 for an unknown subject.")
    for name, read in (("FILE", path), ("--run", Path(options.run))):
        if options.overwrite and read.resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"{name} {read} lies in --out {out}, which --overwrite would replace as a whole: name another folder."
            )
    from eegrecon.pipeline_files import new_directory

    with new_directory(out, RECORD, options.overwrite) as folder:
        eeg = read_trials(path)
        from eegrecon.pipeline import EEGToImagePipeline
        from eegrecon.stages.embed import usable_device

        pipe = EEGToImagePipeline.from_pretrained(options.run, device=usable_device(options.device))
        n = _decode(pipe, eeg, options, folder)
    sys.stderr.write(f"eegrecon: decode: wrote {n} trials to {out}\n")
    return 0


def read_trials(path: Path) -> Any:
    """`mne.Epochs` of a .fif file, or a mapped array of a .npy file.

    Raises:
        DataError: It is neither, or unreadable.
    """
    if path.suffix == ".npy":
        from eegrecon.stages.embed import open_eeg

        return open_eeg(path)
    if not path.name.endswith((".fif", ".fif.gz")):
        raise DataError(f"{path} is neither MNE epochs (.fif) nor a plain array (.npy): name one of these.")
    if not path.is_file():
        raise DataError(f"The epochs file {path} does not exist.")
    import mne

    try:
        with warnings.catch_warnings():  # of files that are not called …-epo.fif
            warnings.simplefilter("ignore", RuntimeWarning)
            return mne.read_epochs(path, preload=True, verbose="error")
    except Exception as error:  # MNE raises many kinds for what is one thing here
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} cannot be read as MNE epochs ({reason}): a continuous recording has to be cut first, with "
            "mne.Epochs(raw, events, tmin=…, tmax=…).save('…-epo.fif')."
        ) from error


def _decode(pipe: EEGToImagePipeline, eeg: Any, options: argparse.Namespace, folder: Path) -> int:
    from eegrecon.stages.progress import progress_bars

    draws = options.images
    trials = pipe.prepare(eeg, subject=options.subject)
    n = len(trials)
    subjects = [options.subject] * n
    noise = pipe.generators(options.seed, subjects, range(n), draws)
    shown = {round(i * (n - 1) / max(1, min(n, GRID_TRIALS) - 1)) for i in range(min(n, GRID_TRIALS))}
    kept: dict[tuple[int, int], Any] = {}
    with progress_bars() as bars:
        task = bars.add_task("embeddings", total=n)
        eeg_embeds, image_embeds = pipe.embed(trials, subject=subjects, generator=noise)
        bars.update(task, completed=n)
        task, place = bars.add_task("pictures", total=n * draws), 0
        told = pipe.told(trials, image_embeds, subject=subjects)
        more = {"latents": told.latents, "captions": told.captions, "batch_size": options.batch_size}
        for batch in pipe.generate(told.image_embeds, generator=noise, **more):
            for picture in batch:
                trial, draw = divmod(place, draws)
                small = _write(picture, folder / picture_name(trial, draw))
                if trial in shown:
                    kept[trial, draw] = small
                place += 1
            bars.update(task, completed=place)
    _write_grid(pipe, options, folder, sorted(shown), kept, n)
    _write_embeds(folder, eeg_embeds, image_embeds, subjects, told.latents)
    _write_record(pipe, options, folder, n, told.captions)
    return n


def picture_name(trial: int, draw: int) -> str:
    """File name of a picture; trials and draws are counted from 0.

    >>> picture_name(7, 0), picture_name(7, 2)
    ('0007.png', '0007__draw-2.png')
    """
    return f"{trial:04d}__draw-{draw}.png" if draw else f"{trial:04d}.png"


def _write(picture: Tensor, path: Path) -> Any:
    """Write one picture; returns it small enough to be kept."""
    from eegrecon.callbacks.grids import to_pil

    made = to_pil(picture)
    made.save(path)
    made.thumbnail((CELL, CELL))
    return made


def _write_grid(
    pipe: EEGToImagePipeline, options: argparse.Namespace, folder: Path, shown: list[int], kept: Any, n: int
) -> None:
    from eegrecon.callbacks.grids import picture_grid, save_picture

    draws = options.images
    labels = ["from EEG"] if draws == 1 else [f"draw {draw}" for draw in range(draws)]
    rows = {label: [kept[trial, draw] for trial in shown] for draw, label in enumerate(labels)}
    title = f"{Path(options.file).name}: {len(shown)} of {n} trials at even distances, seed {options.seed}"
    grid = picture_grid(rows, [f"trial {trial}" for trial in shown], columns=COLUMNS, cell=CELL, title=title)
    save_picture(grid, folder / GRID)


def _write_embeds(
    folder: Path, eeg_embeds: Tensor, image_embeds: Tensor, subjects: list[int], latents: Tensor | None
) -> None:
    import torch
    from safetensors.torch import save_file

    arrays = {"eeg_embeds": eeg_embeds, "pred_image_embeds": image_embeds}
    if latents is not None:
        arrays["pred_latents"] = latents
    arrays["subject"] = torch.tensor(subjects, dtype=torch.int32)
    save_file({name: value.contiguous() for name, value in arrays.items()}, folder / EMBEDS)


def _write_record(pipe: EEGToImagePipeline, options: argparse.Namespace, folder: Path, n: int, captions: Any) -> None:
    from eegrecon.artifacts import sha256_file, write_json
    from eegrecon.manifest import package_versions

    plan, path = pipe.plan, Path(options.file)
    record = {
        "file": {"path": str(path), "sha256": sha256_file(path)},
        "run": {"path": str(options.run), "manifests": plan.stages},
        "generator": {"name": plan.generator.name, "args": plan.generator.args},
        "pathways": dataclasses.asdict(plan.pathways),
        "sample": dataclasses.asdict(plan.sample),
        "trials": n,
        **{name: getattr(options, name) for name in ("subject", "seed", "images")},
        **({"captions": captions} if captions is not None else {}),
        "versions": package_versions(),
    }
    write_json(folder / RECORD, record)
