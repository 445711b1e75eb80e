"""The raw THINGS-EEG2 sessions of one subject as a `TrialSource`: preprocessed session by session, then merged.

`Raw_data/sub-08/ses-01…04/raw_eeg_{training,test}.npy`. Each session's epochs go to a temporary file, so that neither a
recording (2.5 GB) nor its epochs are ever held whole; a session that is done is not done again after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eegrecon.artifacts import atomic_write
from eegrecon.data.images import ImageSet
from eegrecon.data.layout import subject_name
from eegrecon.data.mvnn import condition_covariance, whitener
from eegrecon.data.preprocess import (
    PreprocessParams,
    Recording,
    chosen_trials,
    epoch_blocks,
    filtered,
    n_dropped,
    n_times,
    open_recording,
)
from eegrecon.data.references import AS_RECORDED
from eegrecon.data.sources import SIDES, file_records, in_order, subject_folder
from eegrecon.errors import ConfigError, DataError

FILES = {"train": "raw_eeg_training.npy", "test": "raw_eeg_test.npy"}
SESSIONS = (1, 2, 3, 4)


class RawSource:
    """One subject's raw sessions; see `eegrecon.data.sources.TrialSource` for what the methods give.

    Building it reads the stim channels alone. `prepare` makes the epochs of all sessions.

    Args:
        path: The folder with `sub-08/ses-01/raw_eeg_training.npy`.
        subject: Number from 1.
        images: The set's pictures: event code c is the c-th picture of its partition in THINGS order.
        work: A folder for intermediate files; the caller removes it in the end.
        sessions: Which sessions.
        params: Arguments of `PreprocessParams`.

    Raises:
        ConfigError: An argument does not fit.
        DataError: A file is missing or damaged, or the sessions do not show every picture equally often.
    """

    def __init__(
        self,
        path: str,
        *,
        subject: int,
        images: ImageSet,
        work: Path,
        sessions: Sequence[int] = SESSIONS,
        sfreq: float = 250.0,
        tmin: float = -0.2,
        tmax: float = 1.0,
        baseline: Sequence[float | None] | None = (None, 0.0),
        band: Sequence[float] | None = None,
        n_chans: int = 63,
        crop: float = 0.0,
        mvnn: str = "epochs",
        covariance: str = "train",
        repetitions: Sequence[int] = (2, 20),
        seed: int = 20200220,
    ) -> None:
        if not sessions or len(set(sessions)) != len(sessions) or len(repetitions) != 2:
            raise ConfigError(
                f"source.args.sessions is {list(sessions)} and repetitions {list(repetitions)}, expected different "
                "session numbers, and the most trials a session for train and for test."
            )
        self.params = PreprocessParams(
            sfreq=float(sfreq), tmin=tmin, tmax=tmax, n_chans=n_chans, crop=crop, mvnn=mvnn, seed=seed,
            covariance=covariance,
            baseline=None if baseline is None else (baseline[0], baseline[1]),
            band=None if band is None else (band[0], band[1]),
            repetitions=(repetitions[0], repetitions[1]),
        )  # fmt: skip
        self.subject, self.images, self.work, self.numbers = subject, images, Path(work), tuple(sessions)
        folder = subject_folder(Path(path), subject, f"ses-01/{FILES['train']}")
        self.files = {
            (session, side): folder / f"ses-{session:02d}" / name
            for session in sessions
            for side, name in FILES.items()
        }
        missing = [str(file.relative_to(folder)) for file in self.files.values() if not file.is_file()]
        if missing:
            raise DataError(
                f"{folder} lacks {', '.join(missing)}, expected training and test files of the sessions "
                f"{', '.join(map(str, sessions))}: get them, or set source.args.sessions to those there are."
            )
        self.recordings = {key: open_recording(file, self.params) for key, file in self.files.items()}
        self.trials = {
            (session, side): chosen_trials(recording, self.params.repetitions[SIDES.index(side)], seed)
            for (session, side), recording in self.recordings.items()
        }
        rates = sorted({recording.sfreq for recording in self.recordings.values()})
        if len(rates) > 1 or rates[0] < self.params.sfreq:
            raise DataError(
                f"The sessions in {folder} were recorded at {', '.join(f'{rate:g}' for rate in rates)} Hz, expected "
                f"one rate of at least {self.params.sfreq:g} Hz: get the files again, or lower source.args.sfreq."
            )
        self._plan = {side: self._merge(side) for side in SIDES}

    @property
    def ch_names(self) -> tuple[str, ...]:
        """Channels in order."""
        return self.params.ch_names

    @property
    def sfreq(self) -> float:
        """Samples per second."""
        return self.params.sfreq

    @property
    def tmin(self) -> float:
        """Time of the first sample in seconds from picture onset."""
        return round(self.params.tmin + n_dropped(self.params) / self.params.sfreq, 6)

    @property
    def n_times(self) -> int:
        """Samples per trial."""
        return n_times(self.params, self.recordings[self.numbers[0], "train"].sfreq)

    @property
    def unit(self) -> str:
        """`uV`, or `mvnn` after noise normalisation."""
        return "uV" if self.params.mvnn == "none" else "mvnn"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Every step's parameters, and that no step sets another reference than the recording's."""
        return {**self._steps, "reference": AS_RECORDED}

    @property
    def _steps(self) -> dict[str, Any]:
        """What a session's intermediate files depend on."""
        return {"by": "eegrecon.data.preprocess", **asdict(self.params), "sessions": list(self.numbers)}

    @property
    def sources(self) -> dict[str, Any]:
        """Every file."""
        return file_records(self.files.values())

    @property
    def work_bytes(self) -> int:
        """What the intermediate epochs take on the disk."""
        trials = sum(len(places) for table in self.trials.values() for places in table.values())
        longest = max(recording.source.shape[1] for recording in self.recordings.values())
        scratch = 0 if self.params.band is None else longest * len(self.ch_names) * 8
        return trials * len(self.ch_names) * self.n_times * 4 + scratch

    def counts(self) -> dict[str, tuple[int, int]]:
        """Partition to (n_images, n_repetitions)."""
        return {side: self._plan[side].shape[:2] for side in SIDES}

    def image_index(self, partition: str) -> np.ndarray:
        """Which picture each row shows, (n_images,) int64."""
        return (self.images.train_index if partition == "train" else self.images.test_index).copy()

    def session(self, partition: str) -> np.ndarray:
        """Recording session of each trial, (n_images, n_repetitions) int16."""
        return self._plan[partition][..., 0].astype(np.int16)

    def prepare(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Make the epochs and the whitening matrix of every session; sessions that are done are skipped.

        Args:
            progress: Called with (done, total) trials.
        """
        total = sum(len(places) for table in self.trials.values() for places in table.values())
        done = 0
        for session in self.numbers:
            for side in SIDES:
                for count in self._epochs(session, side):
                    done += count
                    progress(done, total)

    def read(self, partition: str, start: int, stop: int) -> np.ndarray:
        """Rows as (stop - start, n_repetitions, n_chans, n_times) float32, whitened by their session."""
        self._ready  # noqa: B018
        plan = self._plan[partition][start:stop]
        out = np.empty((*plan.shape[:2], len(self.ch_names), self.n_times), dtype=np.float32)
        for session in self.numbers:
            rows, repetitions = np.nonzero(plan[..., 0] == session)
            if not len(rows):
                continue
            epochs = np.load(self._file(session, partition), mmap_mode="r", allow_pickle=False)
            block = np.asarray(epochs[plan[rows, repetitions, 1]], dtype=np.float64)
            if self.params.mvnn != "none":
                block = self._whitener(session) @ block
            out[rows, repetitions] = block
        return out

    def _whitener(self, session: int) -> np.ndarray:
        sides = SIDES if self.params.covariance == "both" else SIDES[:1]
        found = [np.load(self._file(session, f"{side}-covariance"), allow_pickle=False) for side in sides]
        return whitener(np.mean(found, axis=0))

    @cached_property
    def _ready(self) -> bool:
        self.prepare()
        return True

    def _merge(self, side: str) -> np.ndarray:
        """Which trial of which session each repetition is: (n_images, n_repetitions, 2) of session and place.

        Repetitions come session by session and are then shuffled, all pictures alike, with the same seed.
        """
        from sklearn.utils import shuffle

        index = self.images.train_index if side == "train" else self.images.test_index
        in_order(self.images, side, len(index), self.files[self.numbers[0], side])
        found: list[list[tuple[int, int]]] = [[] for _ in index]
        for session in self.numbers:
            place = 0
            for condition, trials in self.trials[session, side].items():
                if not 1 <= condition <= len(index):
                    raise DataError(
                        f"{self.files[session, side]} has the event code {condition}, but there are {len(index)} "
                        f"{side} pictures in {self.images.set_root}: put exactly the published pictures there."
                    )
                found[condition - 1] += [(session, place + i) for i in range(len(trials))]
                place += len(trials)
        lengths = [len(item) for item in found]
        if min(lengths) != max(lengths) or not max(lengths):
            worst = int(np.argmin(lengths))
            raise DataError(
                f"Subject {self.subject} saw the {side} picture number {worst + 1} "
                f"({self.images.records[index[worst]].image_id}) {lengths[worst]} times in the sessions "
                f"{', '.join(map(str, self.numbers))} and others {max(lengths)} times, expected the same for all: a "
                "session is missing or incomplete; get it, or choose sessions that show all pictures equally often."
            )
        order = shuffle(np.arange(lengths[0]), random_state=self.params.seed)
        return np.array(found, dtype=np.int64)[:, order]

    def _file(self, session: int, name: str) -> Path:
        return self.work / f"{subject_name(self.subject)}-ses-{session:02d}-{name}.npy"

    def _epochs(self, session: int, side: str) -> Any:
        """Write one file of epochs (float32, µV, condition by condition) and, where needed, their noise covariance."""
        table = self.trials[session, side]
        trials = np.concatenate(list(table.values()))
        target = self._file(session, side)
        claim = json.dumps([self._steps, len(trials), str(self.files[session, side])], sort_keys=True)
        note = target.with_suffix(".json")
        if target.is_file() and note.is_file() and note.read_text(encoding="utf-8") == claim:
            yield len(trials)
            return
        self.work.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        recording = self.recordings[session, side]
        scratch = self.work / "filtered.npy"
        continuous = None if self.params.band is None else filtered(recording, self.params, scratch)
        covariances = _Covariances(
            [len(places) for places in table.values()],
            self.params.mvnn if side == "train" or self.params.covariance == "both" else "none",
        )
        shape = (len(trials), len(self.ch_names), self.n_times)
        start = 0
        with target.open("wb") as file:  # not a mapping: its pages would count as this process's memory
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in epoch_blocks(recording, trials, self.params, continuous):
                self._check(recording, block, start, trials)
                file.write(np.ascontiguousarray(block, dtype="<f4").data)
                covariances.add(block)
                start += len(block)
                yield len(block)
        scratch.unlink(missing_ok=True)
        if covariances.mode in ("epochs", "time"):
            np.save(self._file(session, f"{side}-covariance"), covariances.mean, allow_pickle=False)
        with atomic_write(note) as file:
            file.write(claim.encode())

    def _check(self, recording: Recording, block: np.ndarray, start: int, trials: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(block).all(axis=(1, 2)))
        if len(bad):
            onset = recording.onsets[trials[start + bad[0]]] / recording.sfreq
            raise DataError(
                f"{recording.path} holds NaN or infinite values near {onset:.1f} s of the recording, where only finite "
                "numbers may stand: get the file again."
            )


class _Covariances:
    """Mean over conditions of their covariances, as blocks of trials come along, condition by condition."""

    def __init__(self, sizes: list[int], mode: str) -> None:
        self.sizes, self.mode = sizes, mode
        self._waiting: list[np.ndarray] = []
        self._sum: Any = 0.0
        self._next = 0

    def add(self, block: np.ndarray) -> None:
        if self.mode not in ("epochs", "time"):
            return
        self._waiting.extend(block)
        while self._next < len(self.sizes) and len(self._waiting) >= (size := self.sizes[self._next]):
            self._sum = self._sum + condition_covariance(np.array(self._waiting[:size]), self.mode)
            del self._waiting[:size]
            self._next += 1

    @property
    def mean(self) -> np.ndarray:
        found: np.ndarray = self._sum / len(self.sizes)
        return found
