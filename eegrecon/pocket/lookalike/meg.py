"""Look-alikes of THINGS-MEG: ds004212's preprocessed epochs with their tables, and the pickles made from them.

271 sensors, 200 Hz. A sensor's signal is a fixed random mixture of the pocket brain's 63 electrodes plus white noise:
it follows the pictures as the EEG does, its topographies mean nothing.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from eegrecon.artifacts import atomic_write
from eegrecon.errors import DataError
from eegrecon.pocket.forward import CH_NAMES
from eegrecon.pocket.lookalike.eeg import Progress, epoch_times, report, rows
from eegrecon.pocket.lookalike.pickling import LargeArray, pickle_parts, write_file
from eegrecon.pocket.lookalike.pictures import LookAlikeSet, file_name
from eegrecon.pocket.lookalike.signals import BLOCK_TRIALS, Signals, blocks, epochs, resample

N_CHANS, SFREQ = 271, 200.0
# CTF275's sensors without the three that are dead at the NIH and the one the authors drop ('MRO11-1609':
# ViCCo-Group/THINGS-data@c1d0aa3 MEG/step1_preprocessing.py). Which three: to our knowledge, not in our facts.
MISSING = ("MLF25", "MRF43", "MRO13", "MRO11")
CATCH = 999999  # event of catch trials (atm.md 1.6)
CATCH_EVERY = 10  # 2,400 of 27,048 events
N_SESSIONS = 12
TMIN, N_FIF, N_PKL = -0.1, 281, 201  # -0.1-1.3 s in the epochs file, 0-1.0 s in the pickles
OUTPUT_SEED = 271  # of the mixture; the same for all subjects
SENSOR_NOISE = 0.3  # white noise of each sensor, in its signal's standard deviations
Z_UV = 7.3  # uV that become one: the published epochs are z-scores of their baseline (step1_preprocessing.py)


class MEGSignals:
    """Trials at the MEG sensors, ``(m, repetitions, 271, 281)``, unitless as the published z-scores, from -0.1 s on."""

    def __init__(self, signals: Signals, subject: int, seed: int = 0) -> None:
        self._signals, self._key = signals, [seed, subject, OUTPUT_SEED]
        mixture = np.random.default_rng(OUTPUT_SEED).standard_normal((N_CHANS, len(CH_NAMES)))
        mixture /= np.linalg.norm(mixture, axis=1, keepdims=True)
        self.mixture = mixture / Z_UV

    def trials(self, images: Any, repetitions: int, first_repetition: int = 0) -> np.ndarray:
        """Return ``(m, repetitions, 271, 281)`` float64."""
        brain = self._signals.trials(images, repetitions, first_repetition).astype(np.float64)
        slow = resample(epochs(brain, after=100), SFREQ)[..., 20 : 20 + N_FIF]  # 400 samples: -0.2-1.396 s
        out = np.asarray(self.mixture @ slow)
        for row, image in enumerate(images):
            for rep in range(repetitions):  # a trial is the same in both layouts
                rng = np.random.default_rng([*self._key, int(image), first_repetition + rep])
                out[row, rep] += SENSOR_NOISE * rng.standard_normal(out.shape[2:])
        return out


def write_meg_pkl(
    folder: Path,
    subject: int,
    pictures: LookAlikeSet,
    repetitions: dict[str, int],
    signals: Signals,
    progress: Progress = None,
    *,
    seed: int = 0,
) -> list[Path]:
    """Write `preprocessed_meg_{training,zs_test}.pkl` of one subject into its folder (atm.md 1.6).

    `meg_data` float64 (concepts, 12, 1, 271, 201) and (200, 1, 12, 271, 201), pickle protocol 4.
    """
    meg = MEGSignals(signals, subject, seed)

    def stream(side: str) -> Callable[[BinaryIO], None]:
        def fill(file: BinaryIO) -> None:
            for block in blocks(meg, rows(pictures, side), repetitions[side], trials=BLOCK_TRIALS // 4):
                file.write(np.ascontiguousarray(block[..., 20 : 20 + N_PKL]).data)
                report(progress, block)

        return fill

    shapes = {
        "train": (pictures.concepts, pictures.exemplars, repetitions["train"]),
        "test": (pictures.test_concepts, 1, repetitions["test"]),
    }
    files = []
    for side, name in (("train", "preprocessed_meg_training.pkl"), ("test", "preprocessed_meg_zs_test.pkl")):
        value = {
            "meg_data": LargeArray((*shapes[side], N_CHANS, N_PKL), np.dtype(np.float64), stream(side)),
            "ch_names": list(sensor_names()),
            "times": epoch_times(N_PKL, SFREQ, 0.0),
        }
        files.append(write_file(folder / name, pickle_parts(value, 4)))
    return files


def write_meg_fif(
    out: Path,
    subject: int,
    pictures: LookAlikeSet,
    repetitions: dict[str, int],
    signals: Signals,
    progress: Progress = None,
    *,
    seed: int = 0,
) -> list[Path]:
    """Write `derivatives/preprocessed/preprocessed_P<subject>-epo.fif`, its sample attributes and the picture tables.

    Events are numbers from 1 of a list of all pictures, 999999 is a catch trial. As in the real set the test concepts'
    other pictures were shown too, once each: whoever reads the file has to leave them out of training.

    Returns:
        The epochs file (MNE adds `-epo-1.fif` and so on beyond 2 GB) and the three tables.

    Raises:
        DataError: the epochs do not fit in memory; MNE holds all of them to write them.
    """
    import mne

    meg = MEGSignals(signals, subject, seed)
    numbers = image_numbers(pictures)
    shown = _shown(pictures, repetitions, numbers, np.random.default_rng([seed, subject]))
    _check_memory(len(shown))
    data = np.zeros((len(shown), N_CHANS, N_FIF))
    for place, (event, image, repetition) in enumerate(shown):
        if event != CATCH:
            data[place] = meg.trials([image], 1, repetition)[0, 0]
        if progress:
            progress(1)
    # 1.5 s from picture to picture at the recording's 1200 Hz; only the order matters to readers.
    events = np.array([[1800 * (place + 1), 0, event] for place, (event, _, _) in enumerate(shown)])
    info = sensor_info()
    path = out / "derivatives" / "preprocessed" / f"preprocessed_P{subject}-epo.fif"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = mne.EpochsArray(data, info, events, tmin=TMIN, verbose="ERROR")
    made.save(path, overwrite=True, verbose="ERROR")
    attributes = out / "sourcedata" / f"sample_attributes_P{subject}.csv"
    by_number = {number: (concept, name) for number, (name, concept) in numbers.items()}
    _write_csv(attributes, _attributes(shown, by_number, pictures))
    index, paths = out / "image_concept_index.csv", out / "image_paths.csv"
    _write_csv(index, [[concept] for _, concept in numbers.values()])
    _write_csv(paths, [[f"images/{name.rsplit('_', 1)[0]}/{name}"] for name, _ in numbers.values()])
    return [path, attributes, index, paths]


def image_numbers(pictures: LookAlikeSet) -> dict[int, tuple[str, int]]:
    """Number from 1 of every picture to its file name and its concept's number from 1, concepts in alphabetical order.

    In THINGS these are the rows of `image_paths.csv` and the values of `image_concept_index.csv` (26,107 rows).
    """
    tests = {concept.name for concept in pictures.test}
    names = sorted(concept.name for concept in (*pictures.train, *pictures.test))
    rows = [
        (file_name(name, exemplar), number)
        for number, name in enumerate(names, start=1)
        for exemplar in range(pictures.exemplars + (name in tests))
    ]
    return dict(enumerate(rows, start=1))


def _shown(
    pictures: LookAlikeSet,
    repetitions: dict[str, int],
    numbers: dict[int, tuple[str, int]],
    rng: np.random.Generator,
) -> list[tuple[int, int, int]]:
    """All trials in the order of the recording: event, picture's row in the set, repetition."""
    number = {name: event for event, (name, _) in numbers.items()}
    trials = []
    test_rows = {}
    for row, (path, concept, _) in enumerate(pictures.plan()):
        side = "train" if row < pictures.n_train else "test"
        if side == "test":
            test_rows[concept.name] = row
        trials += [(number[path.rsplit("/", 1)[1]], row, rep) for rep in range(repetitions[side])]
    for concept_name, row in test_rows.items():
        # The other pictures of a test concept: any signal will do, so it is the test picture's, in other trials.
        trials += [
            (number[file_name(concept_name, exemplar)], row, repetitions["test"] + exemplar)
            for exemplar in range(pictures.exemplars)
        ]
    trials += [(CATCH, 0, 0)] * max(1, len(trials) // CATCH_EVERY)
    return [trials[i] for i in rng.permutation(len(trials))]


def _attributes(
    shown: list[tuple[int, int, int]], by_number: dict[int, tuple[int, str]], pictures: LookAlikeSet
) -> list[list[Any]]:
    """Rows of `sample_attributes_P*.csv`, the columns that the field reads."""
    lines: list[list[Any]] = [
        [
            "trial_type",
            "session_nr",
            "run_nr",
            "things_category_nr",
            "things_image_nr",
            "things_exemplar_nr",
            "image_path",
        ]
    ]
    for place, (event, row, _) in enumerate(shown):
        session = 1 + place * N_SESSIONS // len(shown)
        if event == CATCH:
            lines.append(["catch", session, 1, "", "", "", "images_catch_meg/catch.jpg"])
            continue
        concept, name = by_number[event]
        exemplar = int(name.rsplit("_", 1)[1][:2])
        kind = "test" if row >= pictures.n_train and exemplar == pictures.exemplars + 1 else "exp"
        folder = "images_test_meg" if kind == "test" else f"images_meg/{name.rsplit('_', 1)[0]}"
        lines.append([kind, session, 1, concept, event, exemplar, f"{folder}/{name}"])
    return lines


def sensor_names() -> tuple[str, ...]:
    """The 271 sensor names, such as `MLC11-1609`."""
    return tuple(f"{name}-1609" for name, _ in _sensors())


def _sensors() -> list[tuple[str, tuple[float, float]]]:
    """CTF's sensors from MNE's layout file: name and place in a flat map."""
    import mne

    layout = mne.channels.read_layout("CTF-275")
    found = []
    for name, (x, y, width, height) in zip(layout.names, layout.pos, strict=True):
        if name.split("-")[0] not in MISSING:
            found.append((name.split("-")[0], (float(x + width / 2), float(y + height / 2))))
    return found


def sensor_info() -> Any:
    """MNE's description of the 271 sensors, axial gradiometers at places good enough for a topography."""
    import mne

    info = mne.create_info(list(sensor_names()), SFREQ, "mag", verbose="ERROR")
    flat = np.array([place for _, place in _sensors()])
    flat = (flat - flat.mean(axis=0)) / np.ptp(flat, axis=0).max() * 2
    for channel, (x, y) in zip(info["chs"], flat, strict=True):
        angle = min(np.hypot(x, y), 1.0) * np.pi * 0.55  # the map's rim is a little below the helmet's equator
        direction = np.array([x, y, 0.0]) / max(np.hypot(x, y), 1e-9) * np.sin(angle) + [0, 0, np.cos(angle)]
        across = np.cross(direction, [0.0, 1.0, 0.0] if abs(direction[1]) < 0.9 else [1.0, 0.0, 0.0])
        across /= np.linalg.norm(across)
        axes = np.concatenate([across, np.cross(direction, across), direction])
        channel["loc"] = np.concatenate([0.12 * direction, axes])
        channel["coil_type"] = mne.io.constants.FIFF.FIFFV_COIL_CTF_GRAD
    return info


def _write_csv(path: Path, lines: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _check_memory(n_trials: int) -> None:
    """Refuse what MNE cannot hold.

    Raises:
        DataError: says how much is needed and how much there is.
    """
    needed = 2 * n_trials * N_CHANS * N_FIF * 8  # MNE makes one copy while it writes
    have = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > have:
        raise DataError(
            f"{n_trials} MEG trials need {needed / 1e9:.1f} GB of memory to be written as one epochs file, but "
            f"{have / 1e9:.1f} GB are free: ask for fewer --concepts, or write --layout meg_pkl, which streams."
        )
