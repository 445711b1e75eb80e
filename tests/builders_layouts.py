"""Tiny recordings in the published layouts, written by the libraries that wrote the real ones.

Nothing here uses eegrecon's own writers or its look-alikes: these files are the independent side of the reader tests.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eegrecon.data import THINGS_EEG2_CHANNELS, ImageSet, build_images_json

TRAIN_CONCEPTS = ("aardvark", "bat1", "bat2")
TEST_CONCEPTS = ("aircraft_carrier", "zebra")
NAMES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
TIMES = np.arange(300) / 250 - 0.2  # of which the files keep the last 250 samples


def write_pictures(set_root: Path, exemplars: int = 2, test_exemplar: int = 1) -> ImageSet:
    """Three training concepts and two test concepts; the pictures differ in colour."""
    level = 0
    for folder, concepts, numbers in (
        ("training_images", TRAIN_CONCEPTS, range(1, exemplars + 1)),
        ("test_images", TEST_CONCEPTS, (test_exemplar,)),
    ):
        for place, concept in enumerate(concepts, start=1):
            home = set_root / "images_set" / folder / f"{place:05d}_{concept}"
            home.mkdir(parents=True)
            for number in numbers:
                level += 20
                file = home / f"{concept}_{number:02d}{'b' if number == 1 else 's'}.jpg"
                Image.new("RGB", (24, 24), (level, 100, 200)).save(file)
    return build_images_json(set_root)


def trials(
    n_train: int = 6, n_test: int = 2, repetitions: tuple[int, int] = (4, 5), chans: int = 63, samples: int = 250
) -> dict[str, np.ndarray]:
    """Numbers like whitened EEG, float64."""
    rng = np.random.default_rng(0)
    shapes = {"train": (n_train, repetitions[0], chans, samples), "test": (n_test, repetitions[1], chans, samples)}
    return {side: rng.standard_normal(shape) for side, shape in shapes.items()}


def preprocessed(eeg: np.ndarray, **changes: Any) -> dict[str, Any]:
    """What `EEG-preprocessing/preprocessing_utils.py` of EEG_Image_decode puts into a file."""
    return {"preprocessed_eeg_data": eeg, "ch_names": list(THINGS_EEG2_CHANNELS), "times": TIMES, **changes}


def write_preprocessed(folder: Path, data: dict[str, np.ndarray], **changes: Any) -> None:
    """`pickle.dump` into files that are called `.npy`."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, eeg in data.items():
        with (folder / NAMES[side]).open("wb") as file:
            pickle.dump(preprocessed(eeg, **changes), file, protocol=4)


def write_original(folder: Path, data: dict[str, np.ndarray], ch_names: list[str] | None = None) -> None:
    """`np.save` of a dict: 17 channels, 100 Hz, -0.2 to 0.79 s; in the store's order where no names are given."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, eeg in data.items():
        names = ch_names or list(THINGS_EEG2_CHANNELS[-17:])
        values = preprocessed(eeg, ch_names=names, times=np.arange(100) / 100 - 0.2)
        np.save(folder / NAMES[side], values, allow_pickle=True)


def write_pt(folder: Path, data: dict[str, np.ndarray], images: ImageSet, order: list[int], **changes: Any) -> None:
    """`torch.save` as process_eeg_whiten.py of UBP does it; training rows show the pictures in this order."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for side, eeg in data.items():
        index = np.asarray(order) if side == "train" else images.test_index
        names = [images.records[i].path.removeprefix("images_set/") for i in index]
        names = [name.replace("training_images", "train_images") for name in names]
        count = eeg.shape[1]
        values = {
            "eeg": eeg.astype(np.float16),
            "label": np.tile(np.array([images.records[i].concept_index for i in index])[:, None], (1, count)),
            "img": np.tile(np.array(names)[:, None], (1, count)),
            "text": np.tile(np.array([images.records[i].concept for i in index])[:, None], (1, count)),
            "session": np.tile(np.arange(count) // 2, (len(index), 1)).astype(np.float64),
            "ch_names": list(THINGS_EEG2_CHANNELS),
            "times": TIMES,
            **(changes if side == "train" else {}),
        }
        torch.save(values, folder / f"{side}.pt", pickle_protocol=5)


def sensors(n: int) -> list[str]:
    """Names such as CTF's."""
    return [f"MLC{i:02d}-1609" for i in range(n)]


def write_meg_pkl(folder: Path, data: dict[str, np.ndarray], exemplars: int) -> None:
    """`pickle.dump` of the notebook's arrays: (concepts, pictures, repetitions, sensors, samples)."""
    folder.mkdir(parents=True)
    for side, name in (("train", "preprocessed_meg_training.pkl"), ("test", "preprocessed_meg_zs_test.pkl")):
        n, repetitions, chans, samples = data[side].shape
        per = exemplars if side == "train" else 1
        values = {
            "meg_data": data[side].reshape(n // per, per, repetitions, chans, samples),
            "ch_names": sensors(chans),
            "times": np.arange(samples) / 200.0,
        }
        with (folder / name).open("wb") as file:
            pickle.dump(values, file, protocol=4)


class Place:
    """A data folder with pictures, a folder of recordings, and the command."""

    def __init__(self, root: Path, source: str, set_name: str = "things_eeg2", subjects: str = "[1]") -> None:
        self.set_root, self.files = root / "data" / set_name, root / "files"
        self.images = write_pictures(self.set_root)
        self.store = self.set_root / "trials/sub-01"
        self.config = root / "exp" / "prepare-data.yaml"
        self.config.parent.mkdir()
        self.config.write_text(
            f"data: {{set: {set_name}, root: {root / 'data'}, subjects: {subjects}}}\n"
            f"source: {{name: {source}, args: {{path: {self.files}}}}}\n"
        )

    def words(self, *overrides: str) -> list[str]:
        return ["prepare-data", "--config", str(self.config), *overrides]

    def run(self, *overrides: str) -> int:
        from eegrecon.cli import main

        return main(self.words(*overrides))

    def eeg(self, side: str = "train") -> np.ndarray:
        from eegrecon.data import TrialStore

        part = TrialStore(self.store, ImageSet.from_root(self.set_root)).open(side, verify=True)
        return np.asarray(part.eeg)
