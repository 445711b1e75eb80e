"""Look-alikes of the preprocessed THINGS-EEG2 files: ATM/NICE pickles, the original 17-channel files, UBP's `.pt`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from eegrecon.pocket.forward import CH_NAMES
from eegrecon.pocket.lookalike.pickling import (
    LargeArray,
    Part,
    npy_object_parts,
    pickle_parts,
    write_file,
    write_torch_zip,
)
from eegrecon.pocket.lookalike.pictures import LookAlikeSet
from eegrecon.pocket.lookalike.signals import Signals, blocks, epochs, resample, whitener

# The original files' channels are the last 17 of the 63, in the order in which they stand in the recording.
# fmt: off
RECORDED = (
    "Pz", "P3", "P7", "O1", "Oz", "O2", "P4", "P8", "P1", "P5", "PO7", "PO3", "POz", "PO4", "PO8", "P6", "P2",
)
# fmt: on
FILES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
Progress = Callable[[int], None] | None


def epoch_times(n: int, sfreq: float, tmin: float = -0.2) -> np.ndarray:
    """Return the ``(n,)`` times in s that MNE gives epochs after resampling."""
    return np.arange(n) / sfreq + tmin


def preprocessed_value(n_images: int, repetitions: int, fill: Callable[[BinaryIO], None]) -> dict[str, Any]:
    """What an ATM/NICE file holds: 250 samples at 250 Hz, 300 ``times``, float64, unitless after MVNN (atm.md 1.3)."""
    data = LargeArray((n_images, repetitions, len(CH_NAMES), 250), np.dtype(np.float64), fill)
    return {"preprocessed_eeg_data": data, "ch_names": list(CH_NAMES), "times": epoch_times(300, 250.0)}


def preprocessed_parts(n_images: int, repetitions: int, fill: Callable[[BinaryIO], None]) -> list[Part]:
    """The file's bytes: a pickle of protocol 4 as numpy 1 wrote it, which gives exactly the published sizes.

    16540 × 4 trials are 8,336,163,007 bytes and 200 × 80 are 2,016,003,002 (atm.md 1.3).
    """
    return pickle_parts(preprocessed_value(n_images, repetitions, fill), 4)


def write_preprocessed(
    folder: Path, pictures: LookAlikeSet, repetitions: dict[str, int], signals: Signals, progress: Progress = None
) -> list[Path]:
    """Write `preprocessed_eeg_{training,test}.npy` of one subject; returns the files."""
    white = whitener(signals, range(pictures.n_train), repetitions["train"])

    def stream(side: str) -> Callable[[BinaryIO], None]:
        def fill(file: BinaryIO) -> None:
            for block in blocks(signals, rows(pictures, side), repetitions[side]):
                file.write(np.ascontiguousarray(white @ block, dtype=np.float64).data)
                report(progress, block)

        return fill

    return [
        write_file(folder / name, preprocessed_parts(len(rows(pictures, side)), repetitions[side], stream(side)))
        for side, name in FILES.items()
    ]


def write_original(
    folder: Path, pictures: LookAlikeSet, repetitions: dict[str, int], signals: Signals, progress: Progress = None
) -> list[Path]:
    """Write the files of eeg_encoding's `02_eeg_preprocessing`: `np.save`d dicts, 17 channels, 100 Hz, -0.2-0.79 s.

    float64, unitless; whitened with the 63-channel matrix, of which the 17 rows are kept, in the recording's order.
    """
    rows_of_17 = [CH_NAMES.index(name) for name in RECORDED]
    white = whitener(signals, range(pictures.n_train), repetitions["train"])[rows_of_17]
    n_times = 100

    def stream(side: str) -> Callable[[BinaryIO], None]:
        def fill(file: BinaryIO) -> None:
            for block in blocks(signals, rows(pictures, side), repetitions[side]):
                slow = resample(epochs(white @ block), 100.0)[..., :n_times]
                file.write(np.ascontiguousarray(slow, dtype=np.float64).data)
                report(progress, block)

        return fill

    files = []
    for side, name in FILES.items():
        shape = (len(rows(pictures, side)), repetitions[side], len(RECORDED), n_times)
        value = {
            "preprocessed_eeg_data": LargeArray(shape, np.dtype(np.float64), stream(side)),
            "ch_names": list(RECORDED),
            "times": epoch_times(n_times, 100.0),
        }
        files.append(write_file(folder / name, npy_object_parts(value)))
    return files


def write_pt(
    folder: Path, pictures: LookAlikeSet, repetitions: dict[str, int], signals: Signals, progress: Progress = None
) -> list[Path]:
    """Write UBP's `{train,test}.pt`: a torch zip, protocol 5, numpy arrays with a row an image.

    Keys, dtypes and their oddities are those of HaitaoWuTJU/Uncertainty-aware-Blur-Prior@9e87c70
    preprocess/process_eeg_whiten.py: float16 ``eeg`` of 250 samples beside 300 ``times``; ``label`` int64 from 0 in
    each file; ``session`` float64 from 0; ``img`` relative to a folder of `{train,test}_images`.
    """
    white = whitener(signals, range(pictures.n_train), repetitions["train"])
    paths = [path.replace("training_images/", "train_images/") for path, _, _ in pictures.plan()]

    def stream(side: str) -> Callable[[BinaryIO], None]:
        def fill(file: BinaryIO) -> None:
            for block in blocks(signals, rows(pictures, side), repetitions[side]):
                file.write(np.ascontiguousarray(white @ block, dtype=np.float16).data)
                report(progress, block)

        return fill

    files = []
    for side in FILES:
        index, count = rows(pictures, side), repetitions[side]
        images = [paths[row] for row in index]
        label = np.arange(len(index)) // (pictures.exemplars if side == "train" else 1)
        texts = [path.rsplit("/", 1)[1].rsplit("_", 1)[0] for path in images]
        session = sessions(len(index), count, side).astype(np.float64) - 1
        value = {
            "eeg": LargeArray((len(index), count, len(CH_NAMES), 250), np.dtype(np.float16), stream(side)),
            "label": np.tile(label.astype(np.int64)[:, None], (1, count)),
            "img": np.tile(np.array(images)[:, None], (1, count)),
            "text": np.tile(np.array(texts)[:, None], (1, count)),
            "session": session,
            "ch_names": list(CH_NAMES),
            "times": epoch_times(300, 250.0),
        }
        files.append(write_torch_zip(folder / f"{side}.pt", value))
    return files


def rows(pictures: LookAlikeSet, side: str) -> range:
    """The pictures of one partition, as rows of `LookAlikeSet.plan`."""
    return range(pictures.n_train) if side == "train" else range(pictures.n_train, pictures.n_train + pictures.n_test)


def sessions(n_images: int, repetitions: int, side: str, seed: int = 20200220) -> np.ndarray:
    """In which of the 4 sessions each trial was recorded, ``(n_images, repetitions)`` int64 from 1 (atm.md 1.1).

    Test pictures are shown in every session. A training picture is shown in two sessions: a random half of the
    pictures in session 1 and the rest in 2, and again, another half, in 3 and 4; its first repetitions are the earlier
    session's.
    """
    if side == "test":
        return np.tile(1 + np.arange(repetitions) * 4 // repetitions, (n_images, 1))
    rng = np.random.default_rng(seed)
    second = [rng.permutation(n_images) % 2 for _ in range(2)]
    half = np.arange(repetitions) * 2 // repetitions  # 0, 0, 1, 1
    return np.stack([1 + second[0], 3 + second[1]], axis=1)[:, half]


def report(progress: Progress, block: np.ndarray) -> None:
    """Tell the caller how many trials were written."""
    if progress:
        progress(block.shape[0] * block.shape[1])
