"""`embed`: a finished encoder's embeddings of trials in a plain `.npy` file, for other programs.

A tool, not a stage: it needs no set and no config, and writes one `.npy` file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import MANIFEST, atomic_write
from eegrecon.errors import ArtifactError, ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from eegrecon.loading import LoadedStage


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--run", metavar="DIR", required=True, help="a run directory, or its encoder/")
    parser.add_argument(
        "--eeg",
        metavar="FILE",
        required=True,
        help="a .npy file: floats (trials, channels, samples), in the unit, channel order and window of the encoder's "
        "training trials (data in its manifest.json)",
    )
    parser.add_argument("--subject", metavar="N", type=int, required=True, help="whose trials they are; 0: unknown")
    parser.add_argument("--out", metavar="FILE", required=True, help="the .npy file to write: float32 (trials, dim)")
    parser.add_argument("--batch-size", metavar="N", type=int, default=256, help="trials at a time; default 256")
    parser.add_argument("--device", default="cpu", help="a torch device; default cpu")


def run(options: argparse.Namespace) -> int:
    """Embed `options.eeg` and write `options.out`, which appears whole or not at all.

    Returns:
        0.

    Raises:
        ArtifactError: The run has no finished encoder, or a changed one.
        ConfigError: An option makes no sense.
        DataError: The EEG is no finite float array of the encoder's channels and samples.
    """
    eeg_path, out = Path(options.eeg), Path(options.out)
    _check_options(options, eeg_path, out)
    directory = encoder_directory(Path(options.run))
    eeg = open_eeg(eeg_path)
    from eegrecon.loading import load_stage

    stage = load_stage(directory, usable_device(options.device))
    if stage.manifest.stage != "train-encoder":
        raise ArtifactError(f"{directory} was made by {stage.manifest.stage}: name a run directory with an encoder/.")
    _check_shape(eeg, eeg_path, stage, directory)
    _warn(stage, options.subject, eeg, eeg_path)
    shape = _write(stage.network, eeg, eeg_path, options.subject, out, options.batch_size)
    sys.stderr.write(f"eegrecon: embed: wrote {out}: float32 {shape}\n")
    return 0


def encoder_directory(directory: Path) -> Path:
    """The `encoder/` of a run directory, or the directory itself if it is one.

    Raises:
        ArtifactError: There is no finished encoder.
    """
    for found in (directory / "encoder", directory):
        if (found / MANIFEST).is_file():
            return found
    raise ArtifactError(
        f"{directory} holds no finished encoder (neither encoder/{MANIFEST} nor {MANIFEST}): name a run directory that "
        "train-encoder or import-atm has finished."
    )


def open_eeg(path: Path) -> np.ndarray:
    """Map a `.npy` file of floats (trials, channels, samples), read-only; its values are not read.

    Raises:
        DataError: It is missing, no `.npy` file, or no such array.
    """
    import numpy as np

    if not path.is_file():
        raise DataError(f"The EEG file {path} does not exist: name a .npy file (trials, channels, samples).")
    try:
        eeg = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as a plain .npy array ({reason}): save one with numpy.save.") from error
    if not isinstance(eeg, np.ndarray):
        raise DataError(f"{path} is an archive of several arrays: save the trials alone with numpy.save.")
    if eeg.ndim != 3 or 0 in eeg.shape:
        raise DataError(f"{path} must hold (trials, channels, samples), at least one of each, got shape {eeg.shape}.")
    if not np.issubdtype(eeg.dtype, np.floating):
        raise DataError(f"{path} must hold floats, got {eeg.dtype}: convert it to the encoder's unit as float32.")
    return eeg


def _check_options(options: argparse.Namespace, eeg: Path, out: Path) -> None:
    if options.subject < 0:
        raise ConfigError(f"--subject is {options.subject}, expected an id from 1, or 0 for an unknown subject.")
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size is {options.batch_size}, expected at least 1.")
    if out.suffix != ".npy":
        raise ConfigError(f"--out is {out}, expected a name that ends in .npy.")
    if out.resolve() == eeg.resolve():
        raise ConfigError(f"--out and --eeg are the same file {eeg}: name another one to write.")


def usable_device(name: str) -> str:
    """The name of a torch device that can be used.

    Raises:
        ConfigError: It cannot.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used ({reason}): leave it out for the CPU.") from error
    return name


def _check_shape(eeg: np.ndarray, path: Path, stage: LoadedStage, directory: Path) -> None:
    data = stage.manifest.data
    wanted = (len(data["channels"]), data["n_times"])
    if eeg.shape[1:] != wanted:
        facts = [f"window {data['window']} s"] if "window" in data else []
        facts += [f"{data['sfreq']:g} Hz"] if "sfreq" in data else []
        known = f" ({', '.join(facts)})" if facts else ""
        raise DataError(
            f"{path} has {eeg.shape[1]} channels and {eeg.shape[2]} samples (shape {eeg.shape}), but {directory} was "
            f"trained on {wanted[0]} channels and {wanted[1]} samples{known}: pick the "
            f"channels that its {MANIFEST} lists, in that order, and cut or resample the trials."
        )


def _warn(stage: Any, subject: int, eeg: np.ndarray, path: Path) -> None:
    """Say on stderr what is legal and yet likely to be a slip."""
    from eegrecon.data.spreads import is_odd, odd_channels, spread

    known, channel_std = stage.network.known_subjects, stage.network.channel_std.cpu().numpy()
    if known is not None and subject not in known.tolist():
        sys.stderr.write(
            f"eegrecon: embed: subject {subject} is none of those the encoder was trained on "
            f"({', '.join(map(str, known.tolist()))}): it is treated as unknown\n"
        )
    ratio = spread(eeg, channel_std)
    names = stage.manifest.data.get("channels") or [str(number) for number in range(eeg.shape[1])]
    dead, *odd = odd_channels(eeg, channel_std, names)
    if is_odd(ratio) and ratio:
        sys.stderr.write(
            f"eegrecon: embed: the EEG in {path} varies {ratio:.2g} times as much as the encoder's training trials: "
            "is it in their unit?\n"
        )
    elif single := ", ".join(filter(None, odd)):
        sys.stderr.write(
            f"eegrecon: embed: channels of {path} vary more or less than in training, by this factor: {single}: are "
            "they in the same unit?\n"
        )
    if dead:
        sys.stderr.write(f"eegrecon: embed: channels of {path} are constant within every trial: {dead}\n")


def _write(
    network: nn.Module, eeg: np.ndarray, path: Path, subject: int, out: Path, batch_size: int
) -> tuple[int, ...]:
    import numpy as np
    import torch

    from eegrecon.stages.progress import progress_bars

    device = next(network.parameters()).device
    shape: tuple[int, ...] = ()
    with atomic_write(out) as file, torch.inference_mode(), progress_bars() as bars:
        task = bars.add_task(f"embedding {path.name}", total=len(eeg))
        for start in range(0, len(eeg), batch_size):
            batch = _batch(eeg, path, start, batch_size)
            ids = torch.full((len(batch),), subject, dtype=torch.int64, device=device)
            embeds = network(batch.to(device), ids).float().cpu().numpy()
            if not shape:  # the header goes first, so nothing needs to be kept in memory
                shape = (len(eeg), *embeds.shape[1:])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(embeds, dtype="<f4").tobytes())
            bars.update(task, advance=len(batch))
    return shape


def _batch(eeg: np.ndarray, path: Path, start: int, size: int) -> Tensor:
    """Trials start…start + size, finite float32."""
    import numpy as np
    import torch

    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused below
        rows = np.array(eeg[start : start + size], dtype=np.float32, order="C")
    finite = np.isfinite(rows)
    if not finite.all():
        trial, channel, sample = np.argwhere(~finite)[0].tolist()
        raise DataError(
            f"{path} holds {float(eeg[start + trial, channel, sample])} in trial {start + trial}, channel {channel}, "
            f"sample {sample} (counted from 0), expected finite numbers that float32 can hold: mend or leave out such "
            "trials."
        )
    return torch.from_numpy(rows)
