"""The trial store: one subject's EEG as memory-mapped arrays, opened one partition at a time.

`trials/sub-08/` holds `header.json` and, for `train` and `test`, `_eeg.npy` (n_images, n_repetitions, n_chans,
n_times), `_image_index.npy` (n_images,) and `_session.npy` (n_images, n_repetitions). Numpy and json suffice to read
it. Opening `train` never touches a test file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from eegrecon.artifacts import write_json
from eegrecon.data.channels import THINGS_EEG2_SETS, check_order
from eegrecon.data.images import ImageSet
from eegrecon.data.npy import NpyStream, open_array, read_header, save_array
from eegrecon.data.partition import FIX, Partition
from eegrecon.data.regions import choose_channels
from eegrecon.data.selection import Repetitions, Sessions, kept_trials
from eegrecon.errors import DataError

SCHEMA = 1
PARTITIONS = ("train", "test")
HEADER = "header.json"
CLAIM = ".partial.json"  # what the rows of an unfinished store were made from
KINDS: dict[str, Any] = {
    "set": str,
    "subject": int,
    "unit": str,
    "sfreq": (int, float),
    "tmin": (int, float),
    "n_times": int,
    "ch_names": list,
    "preprocessing": dict,
    "sources": dict,
    "files": dict,
}
Channels = Literal["all"] | Sequence[str] | Mapping[str, Any]
UNITS = ("uV", "mvnn", "fT", "zscore")


def check_channels(set_name: str, ch_names: Sequence[str], where: Path) -> None:
    """Check that no channel comes twice, and that a set's channels are the ones, in the order, that it is known by.

    Raises:
        DataError: They are not; says whether they are the same names in another order.
    """
    if len(set(ch_names)) != len(ch_names):
        raise DataError(f"{where} names a channel twice ({', '.join(ch_names)}): make the store again with {FIX}.")
    if set_name in THINGS_EEG2_SETS:
        fix = f"put them in order and make the store again with {FIX}"
        check_order(ch_names, THINGS_EEG2_SETS[set_name], where, fix)


class TrialStore:
    """One subject's trials. The header is checked at once, a partition's files when it is opened.

    Args:
        path: The store's folder, such as `data/pocket/trials/sub-01`.
        images: The set's pictures; if given, the store must have been made from this very list.

    Raises:
        DataError: The header is missing, unreadable, contradicts itself, or its channels are not the set's.
    """

    def __init__(self, path: Path, images: ImageSet | None = None) -> None:
        self.path, self.images = Path(path), images
        header = read_header(self.path / HEADER, KINDS, schema=SCHEMA, fix=FIX)
        self.header = header
        self.set: str = header["set"]
        self.subject: int = header["subject"]
        self.unit: str = header["unit"]
        self.sfreq: float = float(header["sfreq"])
        self.tmin: float = float(header["tmin"])
        self.n_times: int = header["n_times"]
        self.ch_names: list[str] = list(header["ch_names"])
        where = self.path / HEADER
        if self.unit not in UNITS:
            raise DataError(
                f"{where} gives the unit {self.unit!r}, expected one of {', '.join(UNITS)}: run {FIX} again."
            )
        if self.sfreq <= 0 or self.n_times <= 0:
            raise DataError(
                f"{where} gives sfreq {self.sfreq} and n_times {self.n_times}, both must be above 0: run {FIX}."
            )
        check_channels(self.set, self.ch_names, where)
        for partition in PARTITIONS:
            shape = header["files"].get(f"{partition}_eeg.npy", {}).get("shape", [0, 0, 0, 0])
            if partition == "train" and not any(shape):
                raise DataError(f"{where} lists no train_eeg.npy: make the store again with {FIX}.")
            if any(shape) and list(shape[2:]) != [len(self.ch_names), self.n_times]:
                raise DataError(
                    f"{where} names {len(self.ch_names)} channels and {self.n_times} samples, but gives "
                    f"{partition}_eeg.npy the shape {tuple(shape)}: make the store again with {FIX}."
                )
        made_from = header["sources"].get("images_sha256")
        if images is not None and made_from is not None and made_from != images.sha256:
            raise DataError(
                f"The trials in {self.path} were made from another picture list ({made_from[:12]}…) than "
                f"{images.set_root / 'images.json'} ({images.sha256[:12]}…): make both again with {FIX}."
            )

    def select_channels(self, channels: Channels = "all") -> list[int]:
        """Rows of the channel axis for a choice of channels (see `choose_channels`, which also raises)."""
        return [self.ch_names.index(name) for name in choose_channels(channels, self.ch_names, self.path)]

    def select_window(self, window: Sequence[float] | None = None) -> slice:
        """Samples with start ≤ t < stop (seconds from picture onset), as a slice of the time axis.

        Raises:
            DataError: The window is empty or reaches beyond what is stored.
        """
        if window is None:
            return slice(0, self.n_times)
        start, stop = (round((t - self.tmin) * self.sfreq) for t in window)
        if not 0 <= start < stop <= self.n_times:
            raise DataError(
                f"data.window is [{window[0]}, {window[1]}] s, but {self.path} holds {self.tmin} to "
                f"{self.tmin + self.n_times / self.sfreq:g} s at {self.sfreq:g} Hz: choose a window inside."
            )
        return slice(start, stop)

    def image_index(self, partition: str) -> np.ndarray:
        """Which pictures a partition holds, (n_images,) int64; reads that one small file.

        Raises:
            DataError: The file is damaged, or names pictures twice or from the other partition.
        """
        index = np.array(self._open(f"{partition}_image_index.npy"), dtype=np.int64)
        if index.ndim != 1 or len(np.unique(index)) != len(index):
            raise DataError(f"{self.path / partition}_image_index.npy must list each picture once: run {FIX} again.")
        if self.images is not None:
            known = self.images.train_index if partition == "train" else self.images.test_index
            foreign = np.setdiff1d(index, known)
            if len(foreign):
                raise DataError(
                    f"{self.path / partition}_image_index.npy holds {len(foreign)} pictures (the first is number "
                    f"{foreign[0]}) that are no {partition} pictures of {self.images.set_root}: run {FIX} again."
                )
        return index

    def open(
        self,
        partition: Literal["train", "test"],
        *,
        channels: Channels = "all",
        window: Sequence[float] | None = None,
        sessions: Sessions = "all",
        repetitions: Repetitions = "all",
        verify: bool = False,
    ) -> Partition:
        """Map one partition's files, and only those.

        Args:
            partition: Which.
            channels: See `choose_channels`.
            window: [start, stop) in seconds from picture onset; default: all samples.
            sessions: See `kept_trials`.
            repetitions: See `kept_trials`.
            verify: Also hash the files (seconds per GB).

        Raises:
            DataError: A file is missing, truncated or not what the header says; what is asked for is not there.
        """
        chosen, samples = self.select_channels(channels), self.select_window(window)
        eeg = self._open(f"{partition}_eeg.npy", verify)
        session = self._open(f"{partition}_session.npy", verify)
        index = self.image_index(partition)
        if len(index) != len(eeg) or session.shape != eeg.shape[:2]:
            raise DataError(
                f"The {partition} files in {self.path} disagree: EEG {eeg.shape}, image_index {index.shape}, session "
                f"{session.shape} must share their first axes: make the store again with {FIX}."
            )
        names = [self.ch_names[i] for i in chosen]
        path = self.path / f"{partition}_eeg.npy"
        session = np.array(session)
        keep = kept_trials(session, sessions, repetitions, path)
        return Partition(eeg, index, session, chosen, samples, path, names, self.images, keep)

    def _open(self, name: str, verify: bool = False) -> np.ndarray:
        return open_array(self.path / name, self.header["files"].get(name), fix=FIX, verify=verify)


class TrialStoreWriter:
    """Streams trials into a store; `header.json` comes last, so a killed writer leaves nothing that looks finished.

    Use as a context manager: leaving the block normally finishes the store, an exception removes what was written.
    With a `claim`, an interrupt (or a kill) leaves the rows for the next writer of the same claim, which goes on there.

    Args:
        path: The store's folder.
        set: Name of the set.
        subject: 1, 2, …
        unit: "uV", "mvnn" (unitless after multivariate noise normalisation), "fT" or "zscore" (unitless, divided by the
            standard deviation of the baseline).
        sfreq: Samples per second.
        tmin: Time of the first sample in seconds from picture onset.
        n_times: Samples per trial.
        ch_names: Channels in order.
        preprocessing: What was done to the data, for the reader.
        sources: Where they came from.
        images: The set's picture list; its hash is stored under `sources`.
        counts: Partition to (n_images, n_repetitions).
        dtype: Stored type.
        claim: What the rows depend on, as JSON; partial rows that another writer left under the same claim are kept.
    """

    def __init__(
        self,
        path: Path,
        *,
        set: str,
        subject: int,
        unit: str,
        sfreq: float,
        tmin: float,
        n_times: int,
        ch_names: Sequence[str],
        preprocessing: Mapping[str, Any],
        sources: Mapping[str, Any],
        images: ImageSet,
        counts: Mapping[str, tuple[int, int]],
        dtype: str = "float16",
        claim: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self._claim = Path(path), claim
        check_channels(set, ch_names, self.path)
        self._header: dict[str, Any] = {
            "schema": SCHEMA,
            "set": set,
            "subject": int(subject),
            "unit": unit,
            "sfreq": float(sfreq),
            "tmin": float(tmin),
            "n_times": int(n_times),
            "ch_names": list(ch_names),
            "preprocessing": dict(preprocessing),
            "sources": {**sources, "images_sha256": images.sha256},
        }
        (self.path / HEADER).unlink(missing_ok=True)  # from now on there is no finished store here
        same = claim is not None and read_claim(self.path) == claim
        if not same:
            (self.path / CLAIM).unlink(missing_ok=True)
        self._eeg = {
            name: NpyStream(self.path / f"{name}_eeg.npy", (*shape, len(ch_names), n_times), dtype, resume=same)
            for name, shape in counts.items()
        }
        if claim is not None:  # only now: the streams have dropped whatever another claim left
            write_json(self.path / CLAIM, claim)
        self._index: dict[str, list[np.ndarray]] = {name: [] for name in counts}
        self._session: dict[str, list[np.ndarray]] = {name: [] for name in counts}

    def rows(self, partition: str) -> int:
        """Rows of EEG written so far; at the start, those of a killed writer."""
        return self._eeg[partition].rows

    def keep(self, partition: str, image_index: np.ndarray, session: np.ndarray) -> None:
        """Say what the rows show that a killed writer left; (rows,) and (rows, n_repetitions)."""
        self._index[partition].append(np.asarray(image_index, dtype=np.int32))
        self._session[partition].append(np.asarray(session, dtype=np.int16))

    def append(self, partition: str, eeg: np.ndarray, image_index: np.ndarray, session: np.ndarray) -> None:
        """Add k pictures.

        Args:
            partition: "train" or "test".
            eeg: (k, n_repetitions, n_chans, n_times), in the store's unit.
            image_index: (k,).
            session: (k, n_repetitions).

        Raises:
            DataError: Shapes disagree or values are not finite in the stored type.
        """
        if len(image_index) != len(eeg) or session.shape != eeg.shape[:2]:
            raise DataError(
                f"A block for {self.path} has EEG {eeg.shape}, image_index {np.shape(image_index)} and session "
                f"{session.shape}, which must share their first axes."
            )
        self._eeg[partition].append(eeg)
        self.keep(partition, image_index, session)

    def close(self) -> None:
        """Finish every file, then write the header.

        Raises:
            DataError: Rows are missing.
        """
        files: dict[str, Any] = {}
        for name, stream in self._eeg.items():
            files[f"{name}_eeg.npy"] = stream.finish()
            for part, blocks in (("image_index", self._index[name]), ("session", self._session[name])):
                files[f"{name}_{part}.npy"] = save_array(self.path / f"{name}_{part}.npy", np.concatenate(blocks))
        write_json(self.path / HEADER, {**self._header, "files": files})
        (self.path / CLAIM).unlink(missing_ok=True)

    def abort(self) -> None:
        """Remove what was written so far."""
        for stream in self._eeg.values():
            stream.discard()
            stream.path.unlink(missing_ok=True)
        for name in self._eeg:
            for part in ("image_index", "session"):
                (self.path / f"{name}_{part}.npy").unlink(missing_ok=True)
        (self.path / CLAIM).unlink(missing_ok=True)

    def suspend(self) -> None:
        """Close the files and leave what was written for the next writer of this claim."""
        for stream in self._eeg.values():
            stream.close()

    def __enter__(self) -> "TrialStoreWriter":
        """Start writing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the store, or remove the partial files after an exception (an interrupt leaves them to a claim)."""
        if kind is not None:
            self._give_up(kind)
            return
        try:
            self.close()
        except BaseException as failure:
            self._give_up(type(failure))
            raise

    def _give_up(self, kind: type[BaseException]) -> None:
        if self._claim is None or issubclass(kind, Exception):
            self.abort()
        else:
            self.suspend()


def read_claim(path: Path) -> Any:
    """What an unfinished store was made from, or None."""
    try:
        return json.loads((path / CLAIM).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
