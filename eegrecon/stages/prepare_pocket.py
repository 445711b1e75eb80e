"""`prepare-data` from the source pocket: draw the pictures, show them to simulated subjects, write their stores."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eegrecon.artifacts import (
    Manifest,
    atomic_write,
    new_manifest,
    open_stage,
    read_manifest,
    write_json,
    write_manifest,
)
from eegrecon.config import SOURCES, config_hash, to_dict, to_yaml
from eegrecon.data.images import ImageSet, build_images_json
from eegrecon.data.layout import IMAGES_FOLDER, subject_name, trial_dir
from eegrecon.data.npy import save_array
from eegrecon.data.trials import TrialStoreWriter
from eegrecon.errors import ConfigError
from eegrecon.models.packaged import efficientnet_lite, efflite_features
from eegrecon.pocket.brain import CH_NAMES, N_TIMES, SFREQ, BrainParams, SimulatedSubject, simulate_subject
from eegrecon.pocket.pictures import RECIPE, Recipe, chosen, render_set
from eegrecon.pocket.truth import RECORD
from eegrecon.stages.disk import require_free
from eegrecon.stages.progress import progress_bars

if TYPE_CHECKING:
    from rich.progress import Progress

STAGE = "prepare-data"
POCKET = "pocket"  # the only set this source makes; its name also fixes the channels a store must have
EYE_PIXELS = 48  # side of the pictures that the early areas see; their grids are 6 and 4 cells
SHAPE_LEVEL, SHAPE_PIXELS = 1, 128  # EfficientNet-Lite1 drives the late areas; the pocket CLIP is built on Lite0
BLOCK_TRIALS = 160  # trials in memory at once: 10 MB
SESSIONS = 4  # as in THINGS-EEG2; repetitions are dealt to them in order
SPARE_BYTES = 200_000_000  # pictures, cached features, ground truth


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Make the pictures, `images.json` and the trial store of every subject in `cfg.data.subjects`.

    Args:
        cfg: a `PrepareDataConfig`.
        directory: the set's folder `<root>/<set>`.
        command: the command line, for the manifests.
        overwrite: replace stores and pictures that were made with another config.

    Returns:
        The manifest of the last subject.

    Raises:
        ArtifactError: a store of another config is there.
        ConfigError: the source makes no such set, or has no gain.
        DataError: the disk is too small, or pictures of another recipe are there.
    """
    if cfg.data.set != POCKET:
        raise ConfigError(
            f"source.name is pocket, which makes the set 'pocket' only, but data.set is {cfg.data.set!r}: set it to "
            f"pocket, or source.name to one of {', '.join(name for name in SOURCES if name != POCKET)}."
        )
    if cfg.source.args:
        raise ConfigError(f"The source pocket takes no args, but source.args is {dict(cfg.source.args)}: remove them.")
    if not cfg.brain.gain > 0:
        raise ConfigError(f"brain.gain must be above 0 for the source pocket, but it is {cfg.brain.gain}: set it.")
    _check_disk(cfg, directory, overwrite)
    with progress_bars() as progress:
        images = _pictures(cfg, directory, overwrite, progress)
        for subject in cfg.data.subjects:
            manifest = _subject(cfg, directory, subject, images, command, overwrite, progress)
    return manifest


def _pictures(cfg: Any, directory: Path, overwrite: bool, progress: Progress) -> ImageSet:
    root = directory / IMAGES_FOLDER
    recipe = asdict(cfg.pictures)
    if overwrite and root.exists() and not _same_recipe(root, recipe):
        shutil.rmtree(root)
    task = progress.add_task("pictures", total=None)
    render_set(root, **recipe, progress=lambda done, total: progress.update(task, completed=done, total=total))
    shutil.copyfile(root / "ATTRIBUTION.md", directory / "ATTRIBUTION.md")
    images = build_images_json(directory)
    progress.update(task, completed=len(images), total=len(images))
    return images


def _same_recipe(root: Path, recipe: dict[str, Any]) -> bool:
    file = root / RECIPE
    return file.is_file() and json.loads(file.read_text()) == asdict(Recipe(**recipe))


def _subject(
    cfg: Any, directory: Path, subject: int, images: ImageSet, command: str, overwrite: bool, progress: Progress
) -> Manifest:
    started = time.monotonic()
    # A store's identity is its own subject, the pictures and the brain's constants, not the other subjects asked for.
    own = to_dict(replace(cfg, data=replace(cfg.data, subjects=[subject])))
    del own["source"]  # this one has no choices, and stores made before there were others stay valid
    params = BrainParams(gain=cfg.brain.gain)
    constants = hashlib.sha256(json.dumps(asdict(params), sort_keys=True).encode()).hexdigest()
    inputs = {
        "images.json": {"path": "../../images.json", "manifest_sha256": images.sha256},
        "brain": {"path": "eegrecon.pocket.brain_params", "manifest_sha256": constants},
    }
    home = trial_dir(directory, subject)
    task = progress.add_task(f"{subject_name(subject)}: trials", total=1)
    if open_stage(home, STAGE, config_hash(own), to_yaml(own), inputs, overwrite) == "up_to_date":
        progress.update(task, completed=1)
        return read_manifest(home, verify=False)
    for old in [home / "header.json", *home.glob("*.npy"), *home.glob(".*.partial")]:
        old.unlink(missing_ok=True)  # so that a replaced store needs no second GB
    eye, shape = _brain_inputs(directory / "cache", images, progress)
    train_mask = np.zeros(len(images), dtype=bool)
    train_mask[images.train_index] = True
    brain = simulate_subject(subject, eye, shape, train_mask, params)
    truth = _write_truth(directory / "truth" / subject_name(subject), brain)
    _write_trials(home, cfg, brain, images, progress, task)
    manifest = new_manifest(
        STAGE,
        command=command,
        config_hash=config_hash(own),
        seed=cfg.seed,
        inputs=inputs,
        data={
            "set": cfg.data.set, "subjects": [subject], "ch_names": list(CH_NAMES), "sfreq": SFREQ, "n_times": N_TIMES,
            "window": [0.0, N_TIMES / SFREQ], "unit": "uV", "truth": truth,
        },
        outputs={
            "header.json": {},
            **{f"{side}_{part}.npy": {} for side in ("train", "test") for part in ("eeg", "image_index", "session")},
        },
        wall_seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip
    return write_manifest(home, manifest)


def _write_trials(
    home: Path, cfg: Any, brain: SimulatedSubject, images: ImageSet, progress: Progress, task: Any
) -> None:
    plan = {
        "train": (images.train_index, cfg.brain.train_repetitions),
        "test": (images.test_index, cfg.brain.test_repetitions),
    }
    progress.update(task, completed=0, total=sum(len(index) * repetitions for index, repetitions in plan.values()))
    with TrialStoreWriter(
        home,
        set=cfg.data.set,
        subject=brain.subject,
        unit="uV",
        sfreq=SFREQ,
        tmin=0.0,
        n_times=N_TIMES,
        ch_names=CH_NAMES,
        preprocessing={"baseline": [-0.2, 0.0], "reference": "infinity", "filter": None},
        sources={"simulated": "eegrecon.pocket.brain", "gain": brain.params.gain},
        images=images,
        counts={side: (len(index), repetitions) for side, (index, repetitions) in plan.items()},
    ) as writer:
        for side, (index, repetitions) in plan.items():
            session = 1 + np.arange(repetitions) * SESSIONS // repetitions
            step = max(1, BLOCK_TRIALS // repetitions)
            for start in range(0, len(index), step):
                block = index[start : start + step]
                writer.append(side, brain.trials(block, repetitions), block, np.tile(session, (len(block), 1)))
                progress.advance(task, len(block) * repetitions)


def _write_truth(home: Path, brain: SimulatedSubject) -> dict[str, str]:
    """Write the ground truth (readable with numpy and json alone); returns file name to sha256."""
    record = brain.truth()
    arrays = record.pop("arrays")
    home.mkdir(parents=True, exist_ok=True)
    hashes = {f"{name}.npy": save_array(home / f"{name}.npy", array)["sha256"] for name, array in arrays.items()}
    # The factors give every picture's noise-free signal exactly; the test pictures' is also there as it is, in uV.
    test = np.flatnonzero(~brain.train_mask)
    hashes["noise_free_test.npy"] = save_array(
        home / "noise_free_test.npy", brain.clean(test).astype(np.float16)
    )["sha256"]  # fmt: skip
    write_json(home / RECORD, record)
    return hashes


def _brain_inputs(cache: Path, images: ImageSet, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """What the simulated eye and its shape areas get: pictures ``(n, 48, 48, 3)`` uint8, features ``(n, 1280)``."""
    from PIL import Image

    names = [cache / f"{what}-{images.sha256[:16]}.npy" for what in (f"rgb{EYE_PIXELS}", f"efflite{SHAPE_LEVEL}")]
    if all(name.is_file() for name in names):
        eye, shape = (np.load(name, allow_pickle=False) for name in names)
        return eye, shape
    task = progress.add_task("EfficientNet-Lite1 features", total=len(images))
    model = efficientnet_lite(SHAPE_LEVEL)
    eyes, shapes = [], []
    for start in range(0, len(images), 64):
        pictures = [images.load(i) for i in range(start, min(start + 64, len(images)))]
        small = [picture.resize((EYE_PIXELS, EYE_PIXELS), Image.Resampling.BOX) for picture in pictures]
        eyes.append(np.stack([np.asarray(picture) for picture in small]))
        shapes.append(efflite_features(model, pictures, SHAPE_PIXELS))
        progress.advance(task, len(pictures))
    found = np.concatenate(eyes), np.concatenate(shapes).astype(np.float32)
    for name, array in zip(names, found, strict=True):
        with atomic_write(name) as file:
            np.save(file, array, allow_pickle=False)
    return found


def _check_disk(cfg: Any, directory: Path, overwrite: bool) -> None:
    """Refuse before anything is written when the stores asked for do not fit on the disk.

    Raises:
        DataError: says how much is needed and how much is free.
    """
    waiting = [s for s in cfg.data.subjects if overwrite or not (trial_dir(directory, s) / "manifest.json").is_file()]
    train = len(chosen("train", cfg.pictures.train_concepts)) * cfg.pictures.exemplars * cfg.brain.train_repetitions
    test = len(chosen("test", cfg.pictures.test_concepts)) * cfg.brain.test_repetitions
    each = (train + test) * len(CH_NAMES) * N_TIMES * 2
    old = sum(file.stat().st_size for s in waiting for file in trial_dir(directory, s).glob("*.npy"))
    needed = len(waiting) * each + SPARE_BYTES - old
    if waiting:
        require_free(directory, needed, f"for {len(waiting)} subject(s)")
