"""Sources for THINGS-EEG2 in its published, preprocessed layouts; the facts are those of `atm.md` sections 1.2 to 1.4.

Raw sessions are in `raw_sessions.py`. Each function is an entry of the registry SOURCES and reads headers only.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from eegrecon.data.channels import THINGS_EEG2_CHANNELS, THINGS_EEG2_POSTERIOR, check_order
from eegrecon.data.images import FOLDERS, ImageSet
from eegrecon.data.layout import IMAGES_FOLDER
from eegrecon.data.pickles import ArrayRef
from eegrecon.data.sources import (
    Recording,
    RecordingSource,
    in_order,
    open_recording,
    rows_of,
    subject_folder,
    unknown_sessions,
)
from eegrecon.errors import DataError

FILES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
PT_FILES = {"train": "train.pt", "test": "test.pt"}
AXES = "pictures, repetitions, channels, samples"
ORDER = "put data and names in order"
# `ch_names` of the authors' files: picked from the recording by a pattern (eeg_encoding 02_eeg_preprocessing), they
# keep the recording's order.
# fmt: off
RECORDED = (
    "Pz", "P3", "P7", "O1", "Oz", "O2", "P4", "P8", "P1", "P5", "PO7", "PO3", "POz", "PO4", "PO8", "P6", "P2",
)
# fmt: on


def preprocessed(subject: int, images: ImageSet, work: Path, path: str, sfreq: float = 250.0) -> RecordingSource:
    """`<path>/sub-XX/preprocessed_eeg_{training,test}.npy` of EEG_Image_decode and NICE-EEG.

    float64 (16540, 4, 63, 250) and (200, 80, 63, 250) in a pickled dict; 300 `times` for the last 250 samples; unitless
    after MVNN. Rows follow the sorted pictures (EEG_Image_decode@49cb3a2 eegdatasets_leaveone.py); the sessions of the
    repetitions are shuffled away.

    Args:
        subject: Number from 1.
        images: The set's pictures.
        work: Not needed.
        path: The folder with `sub-XX`.
        sfreq: The rate that the files must show; NICE's script can write others.

    Raises:
        DataError: A file is missing, damaged or of another layout, or does not fit the pictures.
    """
    note = {
        "recipe": "EEG_Image_decode@49cb3a2 EEG-preprocessing (equal to NICE-EEG preprocessing)",
        "filter": None,
        "baseline": [-0.2, 0.0],
        "mvnn": "epochs, covariance of the training partition",
    }
    return _pickled(subject, images, path, sfreq, note)


def original(subject: int, images: ImageSet, work: Path, path: str, sfreq: float = 100.0) -> RecordingSource:
    """`<path>/sub-XX/preprocessed_eeg_{training,test}.npy` of the data set's authors (eeg_encoding).

    float64 (16540, 4, 17, 100) and (200, 80, 17, 100) in a dict by `np.save`; -0.2 to 0.79 s; unitless after MVNN.
    The published files have the channels in the recording's order; they are given in that of THINGS_EEG2_POSTERIOR.
    Arguments and errors as of `preprocessed`.
    """
    note: dict[str, Any] = {
        "recipe": "eeg_encoding 02_eeg_preprocessing",
        "filter": None,
        "baseline": [-0.2, 0.0],
        "mvnn": "time, mean covariance of both partitions",
    }
    return _pickled(subject, images, path, sfreq, note, recorded=RECORDED)


def pt(subject: int, images: ImageSet, work: Path, path: str, sfreq: float = 250.0) -> RecordingSource:
    """`<path>/sub-XX/{train,test}.pt` of Uncertainty-aware-Blur-Prior (process_eeg_whiten.py@9e87c70).

    float16 `eeg` in a torch zip, its rows named by `img` (`train_images/00001_aardvark/aardvark_01b.jpg`), so they may
    come in any order; `session` counts from 0; unitless after MVNN. Arguments and errors as of `preprocessed`.
    """
    folder = subject_folder(Path(path), subject, PT_FILES["train"])
    recordings = {side: open_recording(folder / name, "eeg", axes=AXES, sfreq=sfreq) for side, name in PT_FILES.items()}
    _check_channels(recordings)
    note = {
        "recipe": "Uncertainty-aware-Blur-Prior@9e87c70 preprocess/process_eeg_whiten.py",
        "filter": None,
        "baseline": [-0.2, 0.0],
        "mvnn": "epochs, covariance of the training partition",
        "stored_before_as": str(recordings["train"].data.dtype),
    }
    return RecordingSource(
        subject=subject,
        unit="mvnn",
        preprocessing=note,
        recordings=recordings,
        index={side: _named_pictures(images, side, item) for side, item in recordings.items()},
        sessions={side: _sessions(item) for side, item in recordings.items()},
    )


def check_recording(path: Path, key: str) -> Recording:
    """Open one file of `preprocessed`, `original` (`preprocessed_eeg_data`) or `pt` (`eeg`) and check it alone.

    Raises:
        DataError: As its source would say; the rate must be the layout's own.
    """
    item = None
    if key != "eeg":
        with suppress(DataError):
            item = open_recording(path, key, axes=AXES, sfreq=100.0)  # the data set's authors'
    item = item or open_recording(path, key, axes=AXES, sfreq=250.0)
    if key == "eeg":
        _check_channels({"": item})
        _table(item, "img", "UOS")
        _sessions(item)
    elif item.ch_names != RECORDED:
        fix = f"{ORDER}, or in the published files' own ({', '.join(RECORDED)})"
        _check_channels({"": item}, fix if len(item.ch_names) == len(RECORDED) else ORDER)
    return item


def _pickled(
    subject: int,
    images: ImageSet,
    path: str,
    sfreq: float,
    note: dict[str, Any],
    recorded: tuple[str, ...] = (),
) -> RecordingSource:
    """Both files; channels in the order `recorded` are put into the order of the store."""
    folder = subject_folder(Path(path), subject, FILES["train"])
    key = "preprocessed_eeg_data"
    recordings = {side: open_recording(folder / name, key, axes=AXES, sfreq=sfreq) for side, name in FILES.items()}
    channels = None
    if recorded and all(item.ch_names == recorded for item in recordings.values()):
        channels = THINGS_EEG2_POSTERIOR
        note |= {"ch_names_in_files": list(recorded), "channels": f"reordered to {', '.join(channels)}"}
    else:
        fix = f"{ORDER}, or in the published files' own ({', '.join(recorded)})" if recorded else ORDER
        _check_channels({side: item for side, item in recordings.items() if item.ch_names != recorded}, fix)
    return RecordingSource(
        subject=subject,
        unit="mvnn",
        preprocessing=note,
        recordings=recordings,
        index={side: in_order(images, side, item.data.shape[0], item.path) for side, item in recordings.items()},
        sessions={side: unknown_sessions(item) for side, item in recordings.items()},
        channels=channels,
    )


def _check_channels(recordings: dict[str, Recording], fix: str = ORDER) -> None:
    for item in recordings.values():
        check_order(item.ch_names, (THINGS_EEG2_CHANNELS, THINGS_EEG2_POSTERIOR), item.path, fix)


def _table(item: Recording, key: str, kinds: str) -> np.ndarray | None:
    """A small table (n_images, n_repetitions) beside the trials, or None where the file has none.

    Raises:
        DataError: It has another shape or type.
    """
    value = item.values.get(key)
    if value is None:
        return None
    table = np.asarray(rows_of(value, 0, value.shape[0]) if isinstance(value, ArrayRef) and value.shape else value)
    if table.shape != tuple(item.data.shape[:2]) or table.dtype.kind not in kinds:
        raise DataError(
            f"{key} in {item.path} must have one entry for each trial, {tuple(item.data.shape[:2])}, but it is "
            f"{table.dtype} of shape {table.shape}: get the file again."
        )
    return table


def _named_pictures(images: ImageSet, partition: str, item: Recording) -> np.ndarray:
    """`image_index` of each row from the file's `img`.

    Raises:
        DataError: A row has no name, names two pictures, one that is not in the set, or one that another row has.
    """
    names = _table(item, "img", "UOS")
    home = images.set_root / IMAGES_FOLDER / FOLDERS[partition]
    if names is None:
        raise DataError(f"{item.path} must name the picture of each trial in img, but it has no img: get it again.")
    known = images.train_index if partition == "train" else images.test_index
    index_of = {tuple(images.records[i].image_id.split("/")[1:]): int(i) for i in known}
    found = np.empty(len(names), dtype=np.int64)
    row_of: dict[int, int] = {}
    for row, cells in enumerate(names):
        texts = {cell.decode() if isinstance(cell, bytes) else str(cell) for cell in cells.tolist()}
        if len(texts) != 1:
            raise DataError(
                f"Row {row} of {item.path} names {len(texts)} pictures in img ({', '.join(sorted(texts)[:2])}…), but "
                "the repetitions of a row show one: get the file again."
            )
        picture = PurePosixPath(texts.pop().replace("\\", "/"))
        index = index_of.get((picture.parent.name, picture.stem))
        if index is None:
            raise DataError(
                f"Row {row} of {item.path} shows {picture}, which is not in {home}: put the pictures there that the "
                "recording shows."
            )
        if index in row_of:
            raise DataError(f"Rows {row_of[index]} and {row} of {item.path} both show {picture}: get the file again.")
        row_of[index] = row
        found[row] = index
    if len(found) != len(known):
        missing = next(int(i) for i in known if int(i) not in row_of)
        raise DataError(
            f"{item.path} has trials for {len(found)} {partition} pictures, but {home} holds {len(known)} (no trial "
            f"shows {images.records[missing].image_id}): put exactly the pictures there that the recording shows."
        )
    return found


def _sessions(item: Recording) -> np.ndarray:
    """`session` from 1 (UBP counts from 0), or 0 where the file does not say."""
    table = _table(item, "session", "fiu")
    if table is None:
        return unknown_sessions(item)
    numbers = table.astype(np.int16)
    if not np.array_equal(numbers, table) or numbers.min() < 0:
        raise DataError(
            f"session in {item.path} must hold whole numbers from 0, but it holds {table.min()} to {table.max()}: get "
            "the file again."
        )
    return numbers + np.int16(1 if numbers.min() == 0 else 0)
