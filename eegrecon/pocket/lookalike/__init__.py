"""THINGS look-alikes: the pocket set in the published layouts, at any size up to the real one.

For tests of the readers, and for people who have not got the data. Every file has the published name, keys, dtypes and
pickle protocol, and at full size the published number of bytes; facts and their sources: `shared/facts/atm.md` 1.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eegrecon.errors import ConfigError, DataError
from eegrecon.pocket.lookalike.eeg import write_original, write_preprocessed, write_pt
from eegrecon.pocket.lookalike.meg import N_CHANS, N_FIF, N_PKL, write_meg_fif, write_meg_pkl
from eegrecon.pocket.lookalike.pictures import LookAlikeSet
from eegrecon.pocket.lookalike.raw import LEAD, write_raw
from eegrecon.pocket.lookalike.signals import NoiseSignals, Signals


@dataclass(frozen=True)
class Layout:
    """One published layout.

    Attributes:
        folder: where its subjects' folders lie below the look-alike's own.
        repetitions: trials of a training and of a test picture in the published set.
        trial_bytes: bytes of a trial in its files.
        meg: 12 exemplars, 271 sensors.
    """

    folder: str
    repetitions: dict[str, int]
    trial_bytes: int
    meg: bool = False

    @property
    def exemplars(self) -> int:
        """Pictures of a training concept."""
        return 12 if self.meg else 10


EEG_REPETITIONS, MEG_REPETITIONS = {"train": 4, "test": 80}, {"train": 1, "test": 12}
LAYOUTS = {
    "preprocessed": Layout("Preprocessed_data_250Hz", EEG_REPETITIONS, 63 * 250 * 8),
    "original": Layout("preprocessed_data", EEG_REPETITIONS, 17 * 100 * 8),
    "pt": Layout("Preprocessed_data_250Hz_whiten", EEG_REPETITIONS, 63 * 250 * 2),
    "raw": Layout("Raw_data", EEG_REPETITIONS, 64 * 8),  # times the samples from onset to onset
    "meg_fif": Layout("derivatives/preprocessed", MEG_REPETITIONS, N_CHANS * N_FIF * 4, meg=True),
    "meg_pkl": Layout("preprocessed_MEG", MEG_REPETITIONS, N_CHANS * N_PKL * 8, meg=True),
}


def write_look_alike(
    layout: str,
    out: Path,
    pictures: LookAlikeSet,
    *,
    subject: int = 1,
    repetitions: dict[str, int] | None = None,
    signals: Signals | None = None,
    onset_gap: float = 1.5,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write one subject's recordings in one layout, without pictures or features.

    Args:
        layout: a key of `LAYOUTS`.
        out: the look-alike's folder; files go to the layout's folder in it.
        pictures: which pictures were seen; `signals` is asked for them by row.
        subject: number from 1.
        repetitions: trials of a "train" and of a "test" picture; default as published (4 and 80; MEG 1 and 12).
        signals: the subject's trials in uV; default: noise.
        onset_gap: of "raw": seconds from picture to picture (0.2 in the real recording, where responses overlap).
        seed: of the presentation order and of noise.
        progress: called with the number of trials just written.

    Returns:
        The files.

    Raises:
        ConfigError: the layout is unknown, or repetitions do not go into its sessions.
        DataError: the disk is too small, or (meg_fif) the memory.
    """
    spec = layout_of(layout)
    counts = {**spec.repetitions, **(repetitions or {})}
    check(layout, pictures, counts, subject)
    check_disk(Path(out), bytes_of(layout, pictures, counts, onset_gap))
    signals = signals or NoiseSignals(subject, seed)
    home = Path(out) / spec.folder / f"sub-{subject:02d}"
    if layout == "preprocessed":
        return write_preprocessed(home, pictures, counts, signals, progress)
    if layout == "original":
        return write_original(home, pictures, counts, signals, progress)
    if layout == "pt":
        return write_pt(home, pictures, counts, signals, progress)
    if layout == "raw":
        return write_raw(home, pictures, counts, signals, progress, onset_gap=onset_gap, seed=seed)
    if layout == "meg_pkl":
        return write_meg_pkl(home, subject, pictures, counts, signals, progress, seed=seed)
    return write_meg_fif(Path(out), subject, pictures, counts, signals, progress, seed=seed)


def layout_of(name: str) -> Layout:
    """Return the layout of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"There is no layout {name!r}: choose one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def check(layout: str, pictures: LookAlikeSet, repetitions: dict[str, int], subject: int) -> None:
    """Check the sizes before anything is written.

    Raises:
        ConfigError: a count is too small, or does not go into the sessions.
    """
    small = [
        name
        for name, value in (
            ("--subject", subject),
            ("--concepts", pictures.concepts),
            ("--test-concepts", pictures.test_concepts),
            ("--exemplars", pictures.exemplars),
            ("--repetitions", repetitions["train"]),
            ("--test-repetitions", repetitions["test"]),
        )
        if value < 1
    ]
    if small:
        raise ConfigError(f"{', '.join(small)} must be 1 or more.")
    if layout == "raw" and (repetitions["train"] % 2 or repetitions["test"] % 4):
        raise ConfigError(
            f"The layout 'raw' needs --repetitions in twos (two sessions a picture) and --test-repetitions in fours "
            f"(four sessions), but they are {repetitions['train']} and {repetitions['test']}."
        )


def bytes_of(layout: str, pictures: LookAlikeSet, repetitions: dict[str, int], onset_gap: float = 1.5) -> int:
    """Bytes one subject's recordings take, to a percent or so (exactly: `pickling.size_of`)."""
    trials = pictures.n_train * repetitions["train"] + pictures.n_test * repetitions["test"]
    each = LAYOUTS[layout].trial_bytes
    if layout == "raw":
        return int((trials * 1.07 * onset_gap * 1000 + 16 * LEAD) * each)
    return int(trials * each * (1.3 if layout == "meg_fif" else 1))


def check_disk(out: Path, needed: int) -> None:
    """Refuse what the disk cannot hold.

    Raises:
        DataError: says how much is needed and how much is free.
    """
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed * 1.02 + 10_000_000:
        raise DataError(
            f"The look-alike needs {needed / 1e9:.2f} GB under {out}, but the disk has {free / 1e9:.2f} GB free: make "
            "room, choose another --out, or ask for fewer --concepts or repetitions."
        )
