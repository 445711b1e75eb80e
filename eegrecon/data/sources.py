"""What `prepare-data` converts: one subject of one published layout, described but not loaded.

A source is built by name from the registry SOURCES with `subject=`, `images=` (the set's `ImageSet`), `work=` (a folder
of its own for intermediate files; the stage removes it when the store is finished or given up) and the `args` of the
config. Building one reads headers only; `read` gives trials block by block.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eegrecon.data.images import FOLDERS, ImageSet
from eegrecon.data.layout import IMAGES_FOLDER, subject_name
from eegrecon.data.pickles import ArrayRef, map_rows, read_pickle
from eegrecon.errors import DataError

SIDES = ("train", "test")
SAMPLES, SAMPLE_BYTES = 64, 1 << 16  # of a file, for its fingerprint: 4 MB in all, whatever the file's size
STORED_AXES = ("pictures", "repetitions", "channels", "samples")
RATE_TOLERANCE = 0.005  # share by which times may miss the nominal sampling rate


class TrialSource(Protocol):
    """One subject of one layout, not loaded; units are those of the store: "uV", "mvnn", "fT" or "zscore"."""

    @property
    def subject(self) -> int:
        """Number from 1."""

    @property
    def ch_names(self) -> tuple[str, ...]:
        """Channels in order."""

    @property
    def sfreq(self) -> float:
        """Samples per second."""

    @property
    def tmin(self) -> float:
        """Time of the first sample in seconds from picture onset."""

    @property
    def n_times(self) -> int:
        """Samples per trial."""

    @property
    def unit(self) -> str:
        """Unit of the values."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What was done to the data, as far as the layout says."""

    @property
    def sources(self) -> dict[str, Any]:
        """Every file by name: what `file_record` gives."""

    @property
    def work_bytes(self) -> int:
        """What `prepare` writes into the folder for intermediate files."""

    def counts(self) -> dict[str, tuple[int, int]]:
        """Partition to (n_images, n_repetitions)."""

    def image_index(self, partition: str) -> np.ndarray:
        """Which picture each row shows, (n_images,) int64."""

    def session(self, partition: str) -> np.ndarray:
        """Recording session of each trial, (n_images, n_repetitions) int16 from 1; 0: unknown."""

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Do what has to be done before the first `read`; calls `progress` with (done, total) trials."""

    def read(self, partition: str, start: int, stop: int) -> np.ndarray:
        """Rows as (stop - start, n_repetitions, n_chans, n_times) float32."""


@dataclass(frozen=True)
class Recording:
    """The trials of one file, with their axes.

    Attributes:
        path: The file.
        data: (n_images, n_repetitions, n_chans, n_times), in memory or where it is in the file.
        ch_names: Channels in order.
        sfreq: Samples per second.
        tmin: Time of the first sample in seconds from picture onset.
        values: Everything the file holds.
    """

    path: Path
    data: np.ndarray | ArrayRef
    ch_names: tuple[str, ...]
    sfreq: float
    tmin: float
    values: Mapping[str, Any]


@dataclass(frozen=True)
class RecordingSource:
    """A source whose two partitions are one array each; see `TrialSource`."""

    subject: int
    unit: str
    preprocessing: dict[str, Any]
    recordings: Mapping[str, Recording]
    index: Mapping[str, np.ndarray]
    sessions: Mapping[str, np.ndarray]
    scale: float = 1.0
    work_bytes: int = 0
    channels: tuple[str, ...] | None = None  # the order in which they are given, where it is not the files'

    def __post_init__(self) -> None:
        check_pair(self.recordings["train"], self.recordings["test"])

    @property
    def ch_names(self) -> tuple[str, ...]:
        """Channels in order."""
        return self.channels or self.recordings["train"].ch_names

    @property
    def sfreq(self) -> float:
        """Samples per second."""
        return self.recordings["train"].sfreq

    @property
    def tmin(self) -> float:
        """Time of the first sample in seconds from picture onset."""
        return self.recordings["train"].tmin

    @property
    def n_times(self) -> int:
        """Samples per trial."""
        return int(self.recordings["train"].data.shape[-1])

    @property
    def sources(self) -> dict[str, Any]:
        """Both files."""
        return {item.path.name: file_record(item.path) for item in self.recordings.values()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Partition to (n_images, n_repetitions)."""
        return {side: (int(item.data.shape[0]), int(item.data.shape[1])) for side, item in self.recordings.items()}

    def image_index(self, partition: str) -> np.ndarray:
        """Which picture each row shows, (n_images,) int64."""
        return self.index[partition]

    def session(self, partition: str) -> np.ndarray:
        """Recording session of each trial, (n_images, n_repetitions) int16; 0: unknown."""
        return self.sessions[partition]

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Nothing has to be done."""

    def read(self, partition: str, start: int, stop: int) -> np.ndarray:
        """Rows as (stop - start, n_repetitions, n_chans, n_times) float32."""
        item = self.recordings[partition]
        block = rows_of(item.data, start, stop)
        if self.channels is not None:
            block = block[:, :, [item.ch_names.index(name) for name in self.channels]]
        with np.errstate(over="ignore"):  # an overflow becomes Inf, which the conversion reports
            return (block if self.scale == 1.0 else block * self.scale).astype(np.float32)


def check_pair(first: Recording, second: Recording) -> None:
    """A subject's two files must agree in channels, samples and first time.

    Raises:
        DataError: They do not.
    """
    for name, one, other in (
        ("channels", first.ch_names, second.ch_names),
        ("samples", first.data.shape[-1], second.data.shape[-1]),
        ("first time", first.tmin, second.tmin),
    ):
        if one != other:
            raise DataError(
                f"{first.path} and {second.path} differ in their {name} ({one} and {other}), but one subject's files "
                "must agree: get both from the same source."
            )


def rows_of(data: np.ndarray | ArrayRef, start: int, stop: int) -> np.ndarray:
    """Rows of an array, or of an array inside a file."""
    return map_rows(data, start, stop) if isinstance(data, ArrayRef) else data[start:stop]


def open_recording(path: Path, key: str, *, axes: str, sfreq: float) -> Recording:
    """Read one file of a dict layout without its trials, and check it.

    Args:
        path: The file.
        key: Where in the dict the trials are.
        axes: Names of the array's axes, for counting and for messages; all but the last three become pictures.
        sfreq: The sampling rate that `times` must show.

    Raises:
        DataError: The file is missing, damaged, or not of this layout.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: put the file there, or correct source.args.path.")
    values = read_pickle(path)
    wanted = (key, "ch_names", "times")
    if not isinstance(values, Mapping) or not set(wanted) <= set(values):
        held = f"the keys {', '.join(map(str, values))}" if isinstance(values, Mapping) else f"a {_kind(values)}"
        raise DataError(
            f"{path} must hold a dict with {', '.join(wanted)}, but it holds {held}: choose the source.name that fits "
            "this file (`eegrecon inspect` says what it is)."
        )
    data = values[key]
    shape = tuple(getattr(data, "shape", ()))
    count = axes.count(",") + 1
    if len(shape) != count or 0 in shape:
        raise DataError(
            f"{key} in {path} has the shape {shape or _kind(data)}, expected ({axes}), none of them 0: get the file "
            "again."
        )
    if data.dtype.kind != "f" or data.dtype.itemsize not in (2, 4, 8):
        raise DataError(
            f"{key} in {path} is {data.dtype}, expected float16, float32 or float64 numbers: get the file again."
        )
    if isinstance(data, ArrayRef) and data.fortran and count > len(STORED_AXES):  # axes cannot be folded in place
        raise DataError(
            f"{key} in {path} is stored in Fortran order, which cannot be read trial by trial where an array has "
            f"{count} axes: save it again from `np.ascontiguousarray`."
        )
    names = values["ch_names"]
    if not isinstance(names, (list, tuple, np.ndarray)) or not all(isinstance(name, str) for name in names):
        raise DataError(f"ch_names in {path} must be a list of names, but it is {_kind(names)}: get the file again.")
    ch_names = tuple(str(name) for name in names)
    if len(ch_names) != shape[-2]:
        raise DataError(
            f"{path} names {len(ch_names)} channels, but {key} has {shape[-2]} (its shape is {shape}): get the file "
            "again."
        )
    rate, tmin = time_axis(values["times"], shape[-1], sfreq, path)
    folded = (int(np.prod(shape[:-3])), *shape[-3:])
    data = replace(data, shape=folded) if isinstance(data, ArrayRef) else data.reshape(folded)
    return Recording(path, data, ch_names, rate, tmin, values)


def time_axis(times: Any, n_times: int, sfreq: float, path: Path) -> tuple[float, float]:
    """The sampling rate and the time of the first sample, from a file's `times`.

    Some files keep the times of the baseline whose samples they drop (300 times for 250 samples: EEG_Image_decode
    @49cb3a2 EEG-preprocessing, `[:, :, :, 50:]`); then the data are the last `n_times` of them.

    Raises:
        DataError: There are too few times, they are not even, or they show another rate than `sfreq`.
    """
    found = np.asarray(times.map() if isinstance(times, ArrayRef) else times)
    if found.ndim != 1 or found.dtype.kind not in "fiu" or len(found) < max(n_times, 2):
        raise DataError(
            f"times in {path} must be {n_times} or more numbers in seconds, one for each sample, but it has the shape "
            f"{found.shape} and type {found.dtype}: get the file again."
        )
    found = found.astype(np.float64)
    steps = np.diff(found)
    if not np.isfinite(found).all() or steps.min() <= 0 or steps.max() > 1.1 * steps.min():
        raise DataError(f"times in {path} must rise in even steps, but they do not: get the file again.")
    rate = (len(found) - 1) / (found[-1] - found[0])
    if abs(rate - sfreq) > RATE_TOLERANCE * sfreq:
        raise DataError(
            f"{path} was sampled at {rate:g} Hz, expected {sfreq:g} Hz: get the file at that rate, or set "
            f"source.args.sfreq={rate:.6g}."
        )
    extra = len(found) - n_times
    if extra and abs(found[extra]) > 0.5 / sfreq:
        raise DataError(
            f"{path} has {len(found)} times for {n_times} samples, and the surplus is not the baseline before picture "
            f"onset (the samples would begin at {found[extra]:g} s): get the file again."
        )
    return float(sfreq), round(float(found[extra]), 6)


def subject_folder(path: Path, subject: int, file: str) -> Path:
    """The folder of one subject's files below `source.args.path`.

    Raises:
        DataError: It is not there; says which subjects are.
    """
    folder = Path(path) / subject_name(subject)
    if folder.is_dir():
        return folder
    if not Path(path).is_dir():
        raise DataError(
            f"The folder {path} does not exist, but source.args.path must be the one with {folder.name}/{file} in it: "
            "correct it, or get the files (`eegrecon download --list`)."
        )
    there = ", ".join(sorted(item.name for item in Path(path).glob("sub-*"))) or "none"
    raise DataError(
        f"{folder} does not exist, where {file} of subject {subject} is expected (there: {there}): correct "
        "data.subjects or source.args.path, or get the files."
    )


def in_order(images: ImageSet, partition: str, n: int, path: Path) -> np.ndarray:
    """The pictures of a partition in THINGS order, for a layout whose rows follow it; (n,) int64.

    Raises:
        DataError: There are more or fewer pictures than rows; names a concept with an odd number of pictures.
    """
    known = images.train_index if partition == "train" else images.test_index
    sizes = Counter(images.records[i].folder for i in known)
    usual = Counter(sizes.values()).most_common(1)[0][0] if sizes else 0
    odd = [f"{folder} holds {size} and most hold {usual}" for folder, size in sizes.items() if size != usual]
    if len(known) != n or odd:  # one picture gone and another too many would shift all rows in between
        hint = f" ({odd[0]})" if odd else ""
        home = images.set_root / IMAGES_FOLDER / FOLDERS[partition]
        raise DataError(
            f"{path} has trials for {n} {partition} pictures, but {home} holds {len(known)}{hint}: rows follow the "
            "sorted pictures, so put exactly those there."
        )
    return known.copy()


def unknown_sessions(recording: Recording) -> np.ndarray:
    """Zeros: the layout does not say which session a trial is from."""
    return np.zeros(recording.data.shape[:2], dtype=np.int16)


def file_record(path: Path) -> dict[str, Any]:
    """`{path, bytes, sample_sha256}` of a file, in milliseconds: the hash is of its size and of 64 samples of 64 KB."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for place in np.unique(np.linspace(0, max(0, size - SAMPLE_BYTES), SAMPLES).astype(np.int64)):
            file.seek(int(place))
            found.update(file.read(SAMPLE_BYTES))
    return {"path": str(path), "bytes": size, "sample_sha256": found.hexdigest()}


def file_records(paths: Iterable[Path]) -> dict[str, Any]:
    """`file_record` of each, by file name (with its folder where two names are equal)."""
    files = list(paths)
    twice = {name for name, count in Counter(path.name for path in files).items() if count > 1}
    return {f"{p.parent.name}/{p.name}" if p.name in twice else p.name: file_record(p) for p in files}


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__
