"""Sources for THINGS-MEG: the preprocessed epochs of ds004212, and the pickles that EEG_Image_decode makes of them.

Both hold z-scores: each trial and sensor is divided by the standard deviation of its baseline (ViCCo-Group/THINGS-data
@c1d0aa3 MEG/step1_preprocessing.py, `baseline_correction`), so the unit is "zscore". Epochs in tesla become "fT".
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eegrecon.data.images import FOLDERS, ImageSet
from eegrecon.data.layout import IMAGES_FOLDER
from eegrecon.data.sources import (
    SIDES,
    RecordingSource,
    file_records,
    in_order,
    open_recording,
    rows_of,
    subject_folder,
    unknown_sessions,
)
from eegrecon.data.things_pictures import THINGS_FOLDER, find_table, link_shown_pictures, read_table
from eegrecon.errors import DataError

PKL_FILES = {"train": "preprocessed_meg_training.pkl", "test": "preprocessed_meg_zs_test.pkl"}
AXES = "concepts, pictures, repetitions, channels, samples"
SFREQ = 200.0
CATCH = 999999  # event of catch trials (EEG_Image_decode@49cb3a2 MEG-preprocessing/pre_possess.ipynb)
TESLA = 1e-6  # the median size of z-scores is near 1, of magnetic fields near 1e-13 T
FEMTO = 1e15
NOTE = {"filter": [0.1, 40.0], "baseline": [-0.1, 0.0]}


def meg_pkl(subject: int, images: ImageSet, work: Path, path: str, sfreq: float = SFREQ) -> RecordingSource:
    """`<path>/sub-XX/preprocessed_meg_{training,zs_test}.pkl` of EEG_Image_decode.

    float64 (1654, 12, 1, 271, 201) and (200, 1, 12, 271, 201) in a pickled dict, 0 to 1.0 s at 200 Hz. Rows follow the
    pictures in the order of THINGS, which is that of the sorted files.

    Args:
        subject: Number from 1.
        images: The set's pictures.
        work: Not needed.
        path: The folder with `sub-XX`.
        sfreq: The rate that the files must show.

    Raises:
        DataError: A file is missing, damaged or of another layout, or does not fit the pictures.
    """
    folder = subject_folder(Path(path), subject, PKL_FILES["train"])
    recordings = {
        side: open_recording(folder / name, "meg_data", axes=AXES, sfreq=sfreq) for side, name in PKL_FILES.items()
    }
    scale, unit = _scale(rows_of(recordings["train"].data, 0, 1))
    recipe = "EEG_Image_decode@49cb3a2 MEG-preprocessing from ds004212 preprocessed epochs"
    return RecordingSource(
        subject=subject,
        unit=unit,
        preprocessing={"recipe": recipe, **NOTE},
        recordings=recordings,
        index={side: in_order(images, side, item.data.shape[0], item.path) for side, item in recordings.items()},
        sessions={side: unknown_sessions(item) for side, item in recordings.items()},
        scale=scale,
    )


@dataclass(frozen=True)
class EpochsSource:
    """Trials in an MNE epochs file, found by their events; see `TrialSource`."""

    subject: int
    ch_names: tuple[str, ...]
    sfreq: float
    tmin: float
    n_times: int
    unit: str
    preprocessing: dict[str, Any]
    files: Sequence[Path]
    epochs: Any
    picks: np.ndarray
    first: int
    trials: Mapping[str, np.ndarray]
    index: Mapping[str, np.ndarray]
    number_of_session: np.ndarray
    scale: float
    work_bytes: int = 0

    @property
    def sources(self) -> dict[str, Any]:
        """The file with its continuations, and the table of pictures."""
        return file_records(self.files)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Partition to (n_images, n_repetitions)."""
        return {side: (trials.shape[0], trials.shape[1]) for side, trials in self.trials.items()}

    def image_index(self, partition: str) -> np.ndarray:
        """Which picture each row shows, (n_images,) int64."""
        return self.index[partition]

    def session(self, partition: str) -> np.ndarray:
        """Recording session of each trial, (n_images, n_repetitions) int16; 0: unknown."""
        return self.number_of_session[self.trials[partition]]

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Nothing has to be done."""

    def read(self, partition: str, start: int, stop: int) -> np.ndarray:
        """Rows as (stop - start, n_repetitions, n_chans, n_times) float32.

        Raises:
            DataError: The file is damaged there.
        """
        wanted = self.trials[partition][start:stop]
        flat = wanted.ravel()
        order = np.argsort(flat)  # as they lie in the file
        data = _load(self.epochs, flat[order], self.picks, self.files[0])
        out = np.empty((len(flat), len(self.picks), self.n_times), dtype=np.float32)
        out[order] = data[:, :, self.first : self.first + self.n_times] * self.scale
        return out.reshape(*wanted.shape, *out.shape[1:])


def meg_fif(
    subject: int, images: ImageSet, work: Path, path: str, tables: str = "", tmin: float = 0.0, tmax: float = 1.0
) -> EpochsSource:
    """`preprocessed_P<subject>-epo.fif` of ds004212 (OpenNeuro), read trial by trial through MNE.

    An event is the number of a picture: its line in THINGS' `image_paths.csv`. A picture belongs to the partition in
    whose folder it lies; catch trials and the other pictures of test concepts are left out, as in EEG_Image_decode
    (MEG-preprocessing/pre_possess.ipynb). Only the magnetometers are taken.

    Args:
        subject: Number from 1.
        images: The set's pictures.
        work: Not needed.
        path: The data set's folder, or the one with the epochs.
        tables: The folder with `image_paths.csv` (now `image-paths.csv`); default: `path`, a folder above the epochs,
            or somewhere below the set's folder `things`.
        tmin: First time that is kept, in seconds from picture onset.
        tmax: Last time that is kept.

    Raises:
        DataError: A file is missing or damaged, or events and pictures do not fit.
    """
    fif = _find_epochs(Path(path), subject)
    around = [Path(tables)] if tables else [Path(path), *list(fif.parents)[:4]]
    table = _table(around, None if tables else images.set_root / THINGS_FOLDER, fif)
    epochs = _open_epochs(fif)
    picks = np.flatnonzero([kind == "mag" for kind in epochs.get_channel_types()])
    inside = np.flatnonzero((epochs.times > tmin - 1e-6) & (epochs.times < tmax + 1e-6))
    if not len(picks) or len(inside) < 2:
        raise DataError(
            f"{fif} has {len(picks)} magnetometers and {len(inside)} samples from {tmin:g} to {tmax:g} s, but both are "
            f"needed (its times go from {epochs.times[0]:g} to {epochs.times[-1]:g} s): correct source.args.tmin and "
            "tmax, or get the file again."
        )
    events = np.asarray(epochs.events[:, 2], dtype=np.int64)
    trials, index = _sort(events, [picture.stem for picture in read_table(table)], images, fif)
    scale, unit = _scale(_load(epochs, trials["train"][0, :1], picks, fif))
    continuations = sorted(fif.parent.glob(f"{fif.name.removesuffix('.fif')}-*.fif"))
    return EpochsSource(
        subject=subject,
        ch_names=tuple(epochs.ch_names[i] for i in picks),
        sfreq=float(epochs.info["sfreq"]),
        tmin=round(float(epochs.times[inside[0]]), 6),
        n_times=len(inside),
        unit=unit,
        preprocessing={"recipe": "ds004212 derivatives/preprocessed, THINGS-data@c1d0aa3 MEG/step1", **NOTE},
        files=[fif, *continuations, table],
        epochs=epochs,
        picks=picks,
        first=int(inside[0]),
        trials=trials,
        index=index,
        number_of_session=_sessions(epochs, around, subject),
        scale=scale,
    )


def link_pictures(set_root: Path, subject: int, path: str, tables: str = "") -> None:
    """Link the pictures that a subject's epochs show from THINGS' flat folders into `<set_root>/images_set`.

    Arguments as of `meg_fif`; see `link_shown_pictures`.

    Raises:
        DataError: A file or a picture is missing or damaged, or they do not fit.
    """
    fif = _find_epochs(Path(path), subject)
    around = [Path(tables)] if tables else [Path(path), *list(fif.parents)[:4]]
    table = _table(around, None if tables else set_root / THINGS_FOLDER, fif)
    events = np.asarray(_open_epochs(fif).events[:, 2], dtype=np.int64)
    _check_numbers(events, len(read_table(table)), fif)
    link_shown_pictures(set_root, events[events != CATCH], table)


def _table(around: Sequence[Path], below: Path | None, fif: Path) -> Path:
    table = find_table(around, below)
    if table is None:
        places = ", ".join(map(str, dict.fromkeys(around)))
        raise DataError(
            f"image_paths.csv, which says which picture an event of {fif} is, lies in none of "
            f"{places}{'' if below is None else f', nor below {below}'}: get it from THINGS' metadata (OSF jum2f), or "
            "set source.args.tables to its folder."
        )
    return table


def _find_epochs(path: Path, subject: int) -> Path:
    name = f"preprocessed_P{subject}-epo.fif"
    places = [path / name, path / "derivatives" / "preprocessed" / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        there = sorted({item.name for place in places for item in place.parent.glob("preprocessed_P*-epo.fif")})
        raise DataError(
            f"{name} is neither in {places[0].parent} nor in {places[1].parent} (there: {', '.join(there) or 'none'}): "
            "correct source.args.path or data.subjects, or get ds004212 from OpenNeuro."
        )
    return found


def _open_epochs(fif: Path) -> Any:
    import mne

    try:
        return mne.read_epochs(fif, preload=False, verbose="ERROR")
    except Exception as error:  # MNE's readers fail in many ways on damaged files
        raise DataError(f"{fif} cannot be read as MNE epochs ({_first_line(error)}): get the file again.") from error


def _load(epochs: Any, rows: np.ndarray, picks: np.ndarray, fif: Path) -> np.ndarray:
    try:
        data = epochs[rows].get_data(picks=picks, verbose="ERROR")
    except Exception as error:
        raise DataError(f"{fif} is damaged ({_first_line(error)}): get the file again.") from error
    if len(data) != len(rows):
        raise DataError(f"{fif} gives {len(data)} of {len(rows)} trials asked for: it is truncated; get it again.")
    return np.asarray(data)


def _check_numbers(events: np.ndarray, n_pictures: int, fif: Path) -> None:
    wrong = np.flatnonzero((events != CATCH) & ((events < 1) | (events > n_pictures)))
    if len(wrong):
        raise DataError(
            f"Trial {wrong[0]} of {fif} has the event {events[wrong[0]]}, expected a picture's number from 1 to "
            f"{n_pictures} or {CATCH} (catch trial): get the file again, or the image_paths.csv that belongs to it."
        )


def _sort(
    events: np.ndarray, stems: list[str], images: ImageSet, fif: Path
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """For each partition the trials (n_images, n_repetitions) of its pictures, and the pictures (n_images,).

    Raises:
        DataError: An event has no picture, a picture no trial, or some have more trials than others.
    """
    index_of = {record.image_id.rsplit("/", 1)[1]: i for i, record in enumerate(images.records)}
    test_concepts = {images.records[i].concept for i in images.test_index}
    rows: dict[int, list[int]] = {i: [] for i in range(len(images))}
    _check_numbers(events, len(stems), fif)
    for row, event in enumerate(events.tolist()):
        if event == CATCH:
            continue
        stem = stems[event - 1]
        if stem in index_of:
            rows[index_of[stem]].append(row)
        elif stem.rsplit("_", 1)[0] not in test_concepts:
            raise DataError(
                f"Trial {row} of {fif} shows {stem}, which is in neither {FOLDERS['train']} nor {FOLDERS['test']} of "
                f"{images.set_root / IMAGES_FOLDER}: put all pictures there that were shown."
            )
    trials, index = {}, {"train": images.train_index, "test": images.test_index}
    for side in SIDES:
        sizes = {int(i): len(rows[int(i)]) for i in index[side]}
        few, many = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        if sizes[few] != sizes[many] or not sizes[few]:
            raise DataError(
                f"{fif} shows the {side} picture {images.records[few].image_id} {sizes[few]} times and "
                f"{images.records[many].image_id} {sizes[many]} times, expected all {side} pictures equally often, at "
                "least once: get the file again, or correct the picture folders."
            )
        trials[side] = np.array([rows[int(i)] for i in index[side]], dtype=np.int64)
    return trials, {side: index[side].copy() for side in SIDES}


def _sessions(epochs: Any, around: Sequence[Path], subject: int) -> np.ndarray:
    """Session of every epoch from its metadata or the table beside it, (n_epochs,) int16; zeros where neither says."""
    column: Any = None
    metadata = epochs.metadata
    if isinstance(metadata, list) and metadata and "session_nr" in metadata[0]:  # MNE without pandas
        column = [line["session_nr"] for line in metadata]
    elif hasattr(metadata, "columns") and "session_nr" in metadata.columns:
        column = list(metadata["session_nr"])
    else:
        name = f"sample_attributes_P{subject}.csv"
        places = [place / name for folder in around for place in (folder, folder / "sourcedata")]
        found = next((place for place in places if place.is_file()), None)
        if found is not None:
            with found.open(newline="", encoding="utf-8") as file:
                column = [line.get("session_nr") for line in csv.DictReader(file)]
    try:
        numbers = np.array([int(float(number)) for number in column or []], dtype=np.int16)
    except (TypeError, ValueError):
        numbers = np.zeros(0, dtype=np.int16)
    n_epochs = len(epochs.events)
    return numbers if len(numbers) == n_epochs else np.zeros(n_epochs, dtype=np.int16)


def _scale(trial: np.ndarray) -> tuple[float, str]:
    """Factor to and name of the store's unit: z-scores stay, teslas become fT."""
    size = float(np.median(np.abs(trial.astype(np.float64))))
    return (FEMTO, "fT") if 0 < size < TESLA else (1.0, "zscore")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
