"""Look-alikes of the raw THINGS-EEG2 session files: continuous 1000 Hz recordings with a stim channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from eegrecon.pocket.forward import CH_NAMES
from eegrecon.pocket.lookalike.eeg import RECORDED, Progress, rows, sessions
from eegrecon.pocket.lookalike.pickling import LargeArray, npy_object_parts, write_file
from eegrecon.pocket.lookalike.pictures import LookAlikeSet
from eegrecon.pocket.lookalike.signals import Signals, epochs, resample

SFREQ = 1000
TARGET = 99999  # the code of catch trials (atm.md 1.1)
TARGET_EVERY = 16  # one catch trial for so many pictures
BEFORE, AFTER = 200, 1100  # samples of a trial before and after its onset; MNE's epochs to 1.0 s include 1.0 s itself
LEAD = 700  # samples before the first onset
NAMES = {"train": "raw_eeg_training.npy", "test": "raw_eeg_test.npy"}
# The recording's own order is not that of the preprocessed files; of it we know only how its 17 posterior channels
# follow each other, because the original preprocessing picks them without sorting.
RAW_CH_NAMES = (*RECORDED, *(name for name in reversed(CH_NAMES) if name not in RECORDED))


def write_raw(
    folder: Path,
    pictures: LookAlikeSet,
    repetitions: dict[str, int],
    signals: Signals,
    progress: Progress = None,
    *,
    onset_gap: float = 1.5,
    seed: int = 0,
) -> list[Path]:
    """Write `ses-0{1..4}/raw_eeg_{training,test}.npy` of one subject: `np.save`d dicts, float64 in V.

    Epoching around an event gives the trial that was put in: row ``r`` of the training pictures has the code ``r + 1``,
    and which repetition is in which session says `eeg.sessions`. Between trials the recording is flat; with a gap below
    1.3 s (0.2 in the real recording) neighbours overlap and add up.

    Args:
        folder: the subject's folder.
        pictures: the set.
        repetitions: trials a picture: of "train" an even number, of "test" a multiple of 4.
        signals: where trials come from.
        progress: called with the number of trials written.
        onset_gap: seconds from one picture's onset to the next one's.
        seed: of the presentation order.

    Returns:
        The files, session by session.
    """
    files = []
    for session in range(1, 5):
        for side, name in NAMES.items():
            order = presentation(pictures, repetitions, side, session, seed)
            gap = round(onset_gap * SFREQ)
            n_times = LEAD + (len(order) - 1) * gap + AFTER + LEAD
            value = {
                "raw_eeg_data": LargeArray(
                    (len(CH_NAMES) + 1, n_times),
                    np.dtype(np.float64),
                    _Recording(pictures, side, order, signals, gap, n_times, progress),
                ),
                "ch_names": [*RAW_CH_NAMES, "stim"],
                "ch_types": ["eeg"] * len(CH_NAMES) + ["stim"],
                "sfreq": SFREQ,
                "highpass": 0.01,
                "lowpass": 100,
            }
            files.append(write_file(folder / f"ses-{session:02d}" / name, npy_object_parts(value)))
    return files


def presentation(
    pictures: LookAlikeSet, repetitions: dict[str, int], side: str, session: int, seed: int
) -> list[tuple[int, int]]:
    """One session's pictures in the order they were shown: (row in the partition, repetition); row -1 is a catch."""
    table = sessions(len(rows(pictures, side)), repetitions[side], side)
    shown = [(int(row), int(rep)) for row, rep in np.argwhere(table == session)]
    rng = np.random.default_rng([seed, session, len(shown), side == "test"])
    order = [shown[i] for i in rng.permutation(len(shown))]
    for place in sorted(rng.integers(0, len(order) + 1, max(1, len(order) // TARGET_EVERY)), reverse=True):
        order.insert(int(place), (-1, 0))
    return order


class _Recording:
    """Writes one recording, channel by channel in the file, a minute or so at a time in memory."""

    block = 60_000  # samples

    def __init__(
        self,
        pictures: LookAlikeSet,
        side: str,
        order: list[tuple[int, int]],
        signals: Signals,
        gap: int,
        n_times: int,
        progress: Progress,
    ) -> None:
        self.first = rows(pictures, side)[0]
        self.order, self.signals, self.gap, self.n_times, self.progress = order, signals, gap, n_times, progress

    def __call__(self, file: BinaryIO) -> None:
        origin, done = file.tell(), 0
        for piece in self.pieces():
            for channel, line in enumerate(piece):
                file.seek(origin + (channel * self.n_times + done) * 8)
                file.write(np.ascontiguousarray(line).data)
            done += piece.shape[1]
        file.seek(origin + (len(CH_NAMES) + 1) * self.n_times * 8)

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield the recording as ``(64, k)`` float64 pieces in time order, V and event codes."""
        pick = [CH_NAMES.index(name) for name in RAW_CH_NAMES]
        work = np.zeros((len(CH_NAMES) + 1, self.block + BEFORE + AFTER + self.gap))
        start = 0  # sample of work[:, 0] in the recording
        for number, (row, repetition) in enumerate(self.order):
            onset = LEAD + number * self.gap
            while onset - BEFORE - start >= self.block:
                yield work[:, : self.block].copy()
                work[:, : -self.block] = work[:, self.block :].copy()
                work[:, -self.block :] = 0
                start += self.block
            here = onset - start
            work[-1, here] = TARGET if row < 0 else row + 1
            if row >= 0:
                trial = self.signals.trials([self.first + row], 1, repetition)[0, 0]
                fast = resample(epochs(trial.astype(np.float64), after=25), SFREQ)[pick]
                work[:-1, here - BEFORE : here + AFTER] += fast * 1e-6
                if self.progress:
                    self.progress(1)
        while start < self.n_times:
            yield work[:, : min(work.shape[1], self.n_times - start)].copy()
            start += work.shape[1]
            work[:] = 0
