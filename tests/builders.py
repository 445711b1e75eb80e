"""A tiny look-alike of a set on disk: real names, layouts and shapes, minutes of data turned into kilobytes.

`build_tiny_set(tmp_path)` makes `<tmp_path>/pocket/` with pictures, `images.json`, trial stores and two target stores,
each with its manifest, as `prepare-data` and `extract-targets` would leave them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from eegrecon.artifacts import new_manifest, write_manifest
from eegrecon.data import (
    THINGS_EEG2_CHANNELS,
    ImageSet,
    TargetStore,
    TargetStoreWriter,
    TrialStoreWriter,
    build_images_json,
    target_dir,
    trial_dir,
)

N_TIMES, SFREQ = 250, 250.0
DIM, LATENT = 256, (4, 16, 16)
HIDDEN = 12  # size of the hidden code behind pictures, targets and EEG: small, so that few pictures suffice to learn it
TRAIN_REPETITIONS, TEST_REPETITIONS = 2, 3
NOISE_UV = 1.0


def build_tiny_set(
    root: Path,
    *,
    seed: int = 0,
    subjects: tuple[int, ...] = (1,),
    train_concepts: int = 12,
    exemplars: int = 3,
    test_concepts: int = 4,
    signal: bool = True,
    set_name: str = "pocket",
) -> Path:
    """Make a tiny set under `<root>/<set_name>`.

    Args:
        root: What `data.root` would name.
        seed: Decides pictures, targets and EEG.
        subjects: Trial stores to make.
        train_concepts: Training concepts, `exemplars` pictures each.
        exemplars: Pictures per training concept.
        test_concepts: Test concepts, one picture each.
        signal: Whether the EEG carries the targets (linearly); else it is noise.
        set_name: Name of the set.

    Returns:
        The set's folder. EEG is (n, repetitions, 63, 250) float16 in µV with standard deviation about 1; `clip-pocket`
        targets are (n, 256) with about zero mean and unit variance; `vae-pocket` ones (n, 4, 16, 16).
    """
    set_root = Path(root) / set_name
    rng = np.random.default_rng(seed)
    concepts = rng.normal(size=(train_concepts + test_concepts, HIDDEN))
    counts = [exemplars] * train_concepts + [1] * test_concepts
    code = np.repeat(concepts, counts, axis=0)
    code = np.sqrt(0.8) * code + np.sqrt(0.2) * rng.normal(size=code.shape)
    _draw_pictures(set_root, code, train_concepts, exemplars, test_concepts)
    images = build_images_json(set_root)
    _write_targets(set_root, images, code, rng)
    for subject in subjects:
        _write_trials(set_root, set_name, images, code, subject, seed, signal)
    return set_root


def _draw_pictures(set_root: Path, code: np.ndarray, train_concepts: int, exemplars: int, test_concepts: int) -> None:
    row = 0
    for folder, count, per_concept in (
        ("training_images", train_concepts, exemplars),
        ("test_images", test_concepts, 1),
    ):
        for concept in range(count):
            name = f"{'thing' if folder == 'training_images' else 'other_thing'}{concept + 1:02d}"
            home = set_root / "images_set" / folder / f"{concept + 1:05d}_{name}"
            home.mkdir(parents=True)
            for exemplar in range(per_concept):
                level = (127 + 60 * np.tanh(code[row])).astype(int).tolist()
                picture = Image.new("RGB", (48, 48), tuple(level[:3]))
                left, top = level[6] // 8, level[7] // 8
                ImageDraw.Draw(picture).ellipse((left, top, left + 20, top + 20), fill=tuple(level[3:6]))
                picture.save(home / f"{name}_{exemplar + 1:02d}{'s' if exemplar else 'b'}.jpg", quality=95)
                row += 1


def _write_targets(set_root: Path, images: ImageSet, code: np.ndarray, rng: np.random.Generator) -> None:
    for name, kind, dim in (("clip-pocket", "image", (DIM,)), ("vae-pocket", "vae_latent", LATENT)):
        values = code @ rng.normal(size=(HIDDEN, int(np.prod(dim)))) / np.sqrt(HIDDEN)
        latent = kind == "vae_latent"
        header = {
            "kind": kind,
            "model": "sdxl_vae" if latent else "pocket_clip",
            "weights_tag": "tiny",
            "weights_sha256": "0" * 64,
            "layer": "latent" if latent else "image_embeds",
            "transform": "none",
            "scaling_factor": 0.5 if latent else None,
        }
        path = target_dir(set_root, name)
        writer = TargetStoreWriter(path, images, header, dim)
        for partition, index in (("train", images.train_index), ("test", images.test_index)):
            writer.append(partition, values[index].reshape(-1, *dim))
        writer.close()
        write_store_manifest(path, "extract-targets", 0)


def _write_trials(
    set_root: Path, set_name: str, images: ImageSet, code: np.ndarray, subject: int, seed: int, signal: bool
) -> None:
    rng = np.random.default_rng([seed, subject])
    path = trial_dir(set_root, subject)
    channels = rng.normal(size=(HIDDEN, 63, 1)) * (np.arange(63) >= 46)[:, None]  # over the back of the head
    times = np.arange(N_TIMES) / SFREQ
    bumps = np.exp(-0.5 * ((times - rng.uniform(0.1, 0.4, size=(HIDDEN, 1, 1))) / 0.05) ** 2)
    pattern = (channels * bumps).reshape(HIDDEN, -1) * float(signal)
    counts = {"train": (len(images.train_index), TRAIN_REPETITIONS), "test": (len(images.test_index), TEST_REPETITIONS)}
    with TrialStoreWriter(
        path,
        set=set_name,
        subject=subject,
        unit="uV",
        sfreq=SFREQ,
        tmin=0.0,
        n_times=N_TIMES,
        ch_names=THINGS_EEG2_CHANNELS,
        preprocessing={"note": "tiny simulated data", "baseline": [-0.2, 0.0]},
        sources={"seed": seed},
        images=images,
        counts=counts,
    ) as writer:
        for partition, index in (("train", images.train_index), ("test", images.test_index)):
            shape = (len(index), counts[partition][1], 63, N_TIMES)
            eeg = (code[index] @ pattern).reshape(len(index), 1, 63, N_TIMES)
            eeg = eeg + NOISE_UV * rng.standard_normal(shape, dtype=np.float32)
            session = np.tile(np.arange(shape[1]), (shape[0], 1))
            writer.append(partition, eeg, index, session)
    write_store_manifest(path, "prepare-data", seed)


def write_tokens(set_root: Path, n_tokens: int = 5, width: int = 16) -> None:
    """One more store, `git-tiny`: a captioner's visual tokens, a fixed function of the image embedding."""
    images = ImageSet.from_root(set_root)
    embeds = TargetStore(target_dir(set_root, "clip-pocket"), images).rows(np.arange(len(images)))
    each = embeds @ np.random.default_rng(0).normal(size=(embeds.shape[1], width)) / 16
    tokens = np.repeat(each[:, None], n_tokens, axis=1)
    header = {
        "kind": "layer",
        "model": "git_tiny",
        "weights_tag": "t",
        "weights_sha256": "",
        "layer": "last",
        "transform": None,
        "scaling_factor": None,
        "blur": None,
        "prompt": None,
    }
    path = target_dir(set_root, "git-tiny")
    writer = TargetStoreWriter(path, images, header, (n_tokens, width), "float16")
    for partition, index in (("train", images.train_index), ("test", images.test_index)):
        writer.append(partition, tokens[index])
    writer.close()
    write_store_manifest(path, "extract-targets", 0)


def write_store_manifest(path: Path, stage: str, seed: int) -> None:
    """A manifest over every file of a store, as its stage would leave it."""
    manifest = new_manifest(stage, command="tests/builders.py", config_hash="0" * 64, seed=seed)
    manifest.outputs = {file.name: {} for file in sorted(path.iterdir()) if not file.name.startswith(".")}
    write_manifest(path, manifest)
