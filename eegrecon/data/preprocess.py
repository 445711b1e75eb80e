"""One raw THINGS-EEG2 recording to epochs: the steps of the published preprocessing, through MNE, in bounded memory.

Order of the steps (NICE-EEG and EEG_Image_decode@49cb3a2, EEG-preprocessing; facts/atm.md 1.3): channels picked in a
fixed order, epochs −0.2 … 1.0 s, baseline, resampling *after* epoching, repetitions chosen, samples before onset
dropped, then MVNN (`eegrecon.data.mvnn`). Baseline and resampling treat each epoch on its own, so a block of epochs at
a time gives what all at once would. Where this may differ from the published files: docs/preprocessing.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eegrecon.data.channels import THINGS_EEG2_CHANNELS
from eegrecon.data.mvnn import MODES, PARTITIONS
from eegrecon.data.pickles import ArrayRef, read_pickle
from eegrecon.errors import ConfigError, DataError

KEY = "raw_eeg_data"
CATCH = 99999  # event code of target trials (eeg_encoding 01_data_preparation/source_to_raw.py)
MICRO = 1e6  # the files hold volts, as MNE reads them
BLOCK = 64  # epochs in memory at once: 39 MB, and ten times that in mapped pages, read by the system 64 kB at a time
CHANNEL_SETS = {63: THINGS_EEG2_CHANNELS, 17: THINGS_EEG2_CHANNELS[-17:]}


@dataclass(frozen=True)
class PreprocessParams:
    """What is done to a recording; the defaults are the published 63-channel, 250 Hz recipe.

    Attributes:
        sfreq: Samples per second after epoching.
        tmin: Start of the epoch, seconds from picture onset.
        tmax: Its end.
        baseline: Seconds whose mean is subtracted, or None.
        band: Band-pass in Hz before epoching, or None: the paper says 0.1–100, the code filters nothing.
        n_chans: 63, or the 17 occipito-parietal ones.
        crop: Samples before this time are dropped before MVNN.
        mvnn: "epochs", "time" or "none".
        covariance: Whose noise covariance: that of the "train" trials (NICE, ATM), or the mean of "both" partitions
            (Gifford et al. 2022, eeg_encoding 02_eeg_preprocessing), which looks at test trials.
        repetitions: Most trials of a picture that are kept in a session, for train and test.
        seed: Of the choice and order of repetitions.
    """

    sfreq: float = 250.0
    tmin: float = -0.2
    tmax: float = 1.0
    baseline: tuple[float | None, float | None] | None = (None, 0.0)
    band: tuple[float, float] | None = None
    n_chans: int = 63
    crop: float = 0.0
    mvnn: str = "epochs"
    covariance: str = "train"
    repetitions: tuple[int, int] = (2, 20)
    seed: int = 20200220

    def __post_init__(self) -> None:
        problems = []
        if self.n_chans not in CHANNEL_SETS:
            problems.append(f"n_chans is {self.n_chans}, expected 63 or 17")
        if self.mvnn not in (*MODES, "none"):
            problems.append(f"mvnn is {self.mvnn!r}, expected one of {', '.join(MODES)}, none")
        if self.covariance not in PARTITIONS:
            problems.append(f"covariance is {self.covariance!r}, expected one of {', '.join(PARTITIONS)}")
        if not self.tmin < self.tmax or not self.tmin <= self.crop < self.tmax:
            problems.append(f"tmin {self.tmin}, crop {self.crop} and tmax {self.tmax} must rise")
        if self.sfreq <= 0 or min(self.repetitions) < 1:
            problems.append(f"sfreq {self.sfreq} and repetitions {self.repetitions} must be above 0")
        if self.band is not None and not 0 <= self.band[0] < self.band[1]:
            problems.append(f"band is {list(self.band)} Hz, expected two rising numbers")
        if problems:
            raise ConfigError(f"source.args cannot be used: {'; '.join(problems)}.")

    @property
    def ch_names(self) -> tuple[str, ...]:
        """Channels in order."""
        return CHANNEL_SETS[self.n_chans]


@dataclass(frozen=True)
class Recording:
    """One `raw_eeg_{training,test}.npy`, opened but not loaded.

    Attributes:
        path: The file.
        source: (n_chans, n_samples) volts and event codes, in memory or where they are in the file.
        ch_names: Rows of `data`.
        sfreq: Samples per second.
        onsets: Sample of each picture's onset, (n,), catch trials left out.
        conditions: Its code, (n,), from 1.
    """

    path: Path
    source: np.ndarray | ArrayRef
    ch_names: list[str]
    sfreq: float
    onsets: np.ndarray
    conditions: np.ndarray

    @property
    def data(self) -> np.ndarray:
        """A new mapping each time: pages that one has read count as this process's memory for as long as it lives."""
        return self.source.map() if isinstance(self.source, ArrayRef) else self.source


def open_recording(path: Path, params: PreprocessParams) -> Recording:
    """Open one raw file, check its layout, and find the picture onsets.

    Raises:
        DataError: It is missing, damaged, of another layout or lacks channels.
    """
    values = read_pickle(path)
    wanted = (KEY, "ch_names", "ch_types", "sfreq")
    if not isinstance(values, Mapping) or not set(wanted) <= set(values):
        held = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise DataError(
            f"{path} must hold a dict with {', '.join(wanted)}, but it holds {held}: ask `eegrecon inspect` what it is."
        )
    source = values[KEY] if isinstance(values[KEY], ArrayRef) else np.asarray(values[KEY])
    data = source.map() if isinstance(source, ArrayRef) else source
    names, types = ([str(item) for item in values[key]] for key in ("ch_names", "ch_types"))
    if data.ndim != 2 or data.dtype.kind != "f" or not len(data) == len(names) == len(types):
        raise DataError(
            f"{KEY} in {path} must be (channels, samples) with as many names and types, but it is {data.shape} "
            f"{data.dtype} with {len(names)} names and {len(types)} types: get the file again."
        )
    lacking = [name for name in params.ch_names if names.count(name) != 1]
    if lacking or types.count("stim") != 1:
        what = f"the channels {', '.join(lacking)}" if lacking else f"{types.count('stim')} stim channels"
        raise DataError(
            f"{path} must have each of the {params.n_chans} channels and one stim channel once, but that is not so of "
            f"{what}: get the file again."
        )
    codes = np.asarray(data[types.index("stim")])
    if not np.isfinite(codes).all() or (codes != np.round(codes)).any() or codes.min(initial=0) < 0:
        raise DataError(f"the stim channel of {path} holds other numbers than event codes: get the file again.")
    before = np.concatenate([codes[:1], codes[:-1]])
    onsets = np.flatnonzero((codes != 0) & (codes > before))  # mne.find_events' default, "increasing"
    onsets = onsets[codes[onsets] != CATCH]
    sfreq = _rate(values["sfreq"], path)
    first, length = epoch_samples(params, sfreq)
    # Epochs that reach beyond the recording are dropped, as MNE drops them; who merges sessions counts repetitions.
    onsets = onsets[(onsets + first >= 0) & (onsets + first + length <= data.shape[1])]
    return Recording(path, source, names, sfreq, onsets, codes[onsets].astype(np.int64))


def epoch_samples(params: PreprocessParams, sfreq: float) -> tuple[int, int]:
    """First sample of an epoch, counted from onset, and its length, as `mne.Epochs` counts them: both ends included."""
    return round(params.tmin * sfreq), round((params.tmax - params.tmin) * sfreq) + 1


def chosen_trials(recording: Recording, most: int, seed: int) -> dict[int, np.ndarray]:
    """Which trials of each condition are kept, and in which order: condition to positions in `onsets`.

    The published code shuffles the trials of every condition with the same seed and takes the first `most`.
    """
    from sklearn.utils import shuffle

    by_condition: dict[int, list[int]] = {}
    for place, condition in enumerate(recording.conditions.tolist()):
        by_condition.setdefault(condition, []).append(place)
    return {
        condition: shuffle(np.array(places), random_state=seed, n_samples=min(most, len(places)))
        for condition, places in sorted(by_condition.items())
    }


def epoch_blocks(
    recording: Recording, trials: np.ndarray, params: PreprocessParams, continuous: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Epochs of these trials, block by block: baseline-corrected, resampled, cropped.

    Args:
        recording: The file.
        trials: Positions in `recording.onsets`, in the order wanted.
        params: What to do.
        continuous: Filtered channels (n_chans, n_samples) in µV instead of the recording's own.

    Yields:
        (k, n_chans, n_times) float64, µV.
    """
    import mne

    picks = [recording.ch_names.index(name) for name in params.ch_names]
    info = mne.create_info(list(params.ch_names), recording.sfreq, "eeg")
    first, length = epoch_samples(params, recording.sfreq)
    for start in range(0, len(trials), BLOCK):
        windows, data = [], recording.data
        for onset in recording.onsets[trials[start : start + BLOCK]] + first:
            source = data[:, onset : onset + length] if continuous is None else None
            windows.append(continuous[:, onset : onset + length] if source is None else source[picks] * MICRO)  # type: ignore[index]
        epochs = mne.EpochsArray(
            np.array(windows, dtype=np.float64),
            info,
            tmin=first / recording.sfreq,
            baseline=params.baseline,
            verbose=False,
        )
        if params.sfreq != recording.sfreq:
            epochs.resample(params.sfreq, verbose=False)
        del data
        yield epochs.get_data(copy=False)[:, :, n_dropped(params) :]


def n_dropped(params: PreprocessParams) -> int:
    """Samples before `crop`: 50 of the published 300."""
    return round((params.crop - params.tmin) * params.sfreq)


def n_times(params: PreprocessParams, sfreq: float) -> int:
    """Samples of an epoch after resampling (as MNE rounds it) and cropping."""
    _, length = epoch_samples(params, sfreq)
    kept = length if params.sfreq == sfreq else round(length * params.sfreq / sfreq)
    return kept - n_dropped(params)


def filtered(recording: Recording, params: PreprocessParams, path: Path) -> np.ndarray:
    """Band-pass the channels of a recording into a temporary file, one at a time; (n_chans, n_samples) float64, µV."""
    import mne

    assert params.band is not None
    shape = (params.n_chans, recording.source.shape[1])
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=shape)
    for row, name in enumerate(params.ch_names):
        line = np.array(recording.data[recording.ch_names.index(name)], dtype=np.float64) * MICRO
        out = np.lib.format.open_memmap(path, mode="r+")  # a new mapping for each channel, for the same reason
        out[row] = mne.filter.filter_data(line, recording.sfreq, *params.band, verbose=False)
    return np.lib.format.open_memmap(path, mode="r")


def _rate(value: Any, path: Path) -> float:
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate < 1e6:
        raise DataError(f"{path} gives the sampling rate {value!r}, expected a number of Hz: get the file again.")
    return rate
