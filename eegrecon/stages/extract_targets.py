"""`extract-targets`: what the networks are to predict for every picture, one store a target.

`directory` is the set's folder `<root>/<set>`. Each store `targets/<name>` is a stage directory of its own: adding a
target leaves the others up to date, and a killed run goes on behind the last picture that was written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eegrecon.artifacts import Manifest, new_manifest, open_stage, read_manifest, sha256_file, write_manifest
from eegrecon.config import config_hash, to_yaml
from eegrecon.data.feature_files import FeatureFiles
from eegrecon.data.images import ImageSet
from eegrecon.data.layout import IMAGES_JSON, target_dir
from eegrecon.data.targets import CLAIM, HEADER, TargetStore, TargetStoreWriter
from eegrecon.errors import DataError
from eegrecon.stages.progress import progress_bars
from eegrecon.stages.target_import import spot_check
from eegrecon.stages.target_plan import Plan, build, plans, source_files
from eegrecon.stages.target_rows import Batch, batches, devices, encoded

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

STAGE = "extract-targets"
FILES = (HEADER, "train.npy", "train_image_index.npy", "test.npy", "test_image_index.npy")


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Make the target store of every entry of `cfg.targets`, training and test pictures alike.

    Targets are functions of pictures alone, so making those of test pictures opens no test EEG.

    Args:
        cfg: An `ExtractTargetsConfig`.
        directory: The set's folder `<root>/<set>`, with `images.json`.
        command: The command line, for the manifests.
        overwrite: Replace stores that were made with another config, other pictures or other weights.

    Returns:
        The manifest of the last target.

    Raises:
        ArtifactError: A store of another config, other pictures or other weights is there.
        ConfigError: A model's arguments or kind do not fit, keys contradict each other, no target is named, or there
            are fewer devices than asked for.
        DataError: Pictures or weights are missing, a model gives values that are not finite, or imported features are
            not those of these pictures.
    """
    directory = Path(directory)
    wanted = plans(cfg.targets)
    places = devices(cfg.hardware.accelerator, cfg.hardware.devices)
    images = ImageSet.from_root(directory)
    with progress_bars() as progress:
        for plan in wanted:
            manifest = _extract(cfg, plan, images, places, command, overwrite, progress)
    return manifest


def _extract(
    cfg: Any, plan: Plan, images: ImageSet, places: list[str], command: str, overwrite: bool, progress: Progress
) -> Manifest:
    started = time.monotonic()
    identity = plan.identity(cfg.data.set)
    inputs = {"images": {"path": str(images.set_root / IMAGES_JSON), "manifest_sha256": images.sha256}}
    for name, path in source_files(plan.spec.model).items():
        inputs[name] = {"path": str(path), "manifest_sha256": sha256_file(path)}
    home = target_dir(images.set_root, plan.name)
    task = progress.add_task(f"targets {plan.name}", total=len(images))
    own = to_yaml(plan.config(cfg.data.set))
    if open_stage(home, STAGE, config_hash(identity), own, inputs, overwrite) == "up_to_date":
        progress.update(task, completed=len(images))
        return read_manifest(home, verify=False)
    if overwrite:
        (home / CLAIM).unlink(missing_ok=True)  # start from nothing, not behind the partial rows
    model = build(plan)
    checked = {}
    if isinstance(model, FeatureFiles):
        shape = model.check(images, plan.spec.kind)
        checked["spot_check"] = spot_check(model, images, plan)
        if "why" in checked["spot_check"]:
            progress.console.print(f"targets {plan.name}: no row was compared: {checked['spot_check']['why']}.")
        header = model.header(plan.spec.kind)
    else:
        shape = tuple(model.shape) if hasattr(model, "shape") else (int(model.dim),)
        header = {key: value for key, value in model.header().items() if key != "dim"}
    header |= {"kind": plan.spec.kind, "blur": plan.blur.header()}
    if plan.spec.kind == "text":
        header |= {"prompt": plan.spec.prompt, "transform": None}
    _write(home, model, plan, images, header, shape, places, progress, task)
    store = TargetStore(home, images)
    manifest = new_manifest(
        STAGE,
        command=command,
        config_hash=config_hash(identity),
        seed=cfg.seed,
        data={"set": cfg.data.set, "n_images": {p: len(store.open(p)[1]) for p in ("train", "test")}, **checked},
        interface=store.interface(),
        inputs=inputs,
        outputs={file: {} for file in FILES},
        device=places[0].partition(":")[0],
        wall_seconds=round(time.monotonic() - started, 1),
    )
    return write_manifest(home, manifest)


def _write(
    home: Path,
    model: Any,
    plan: Plan,
    images: ImageSet,
    header: dict[str, Any],
    shape: tuple[int, ...],
    places: list[str],
    progress: Progress,
    task: TaskID,
) -> None:
    writer = TargetStoreWriter(home, images, header, shape, plan.spec.dtype)
    try:
        done = {partition: writer.done(partition) for partition in ("train", "test")}
        progress.advance(task, sum(done.values()))
        todo = batches(images, plan.spec.batch_size, done)
        rows = _rows(model, plan, images, todo, places)
        for batch, values in zip(todo, rows, strict=True):
            expected = (batch.stop - batch.start, *shape)
            if values.shape != expected:
                raise DataError(
                    f"The model {plan.spec.model.name!r} gave an array of shape {values.shape} for {expected[0]} "
                    f"pictures, expected {expected}: this is a fault of the model's loader."
                )
            writer.append(batch.partition, values[batch.skip - batch.start :])
            progress.advance(task, batch.stop - batch.skip)
    except BaseException:
        writer.suspend()
        raise
    writer.close()


def _rows(model: Any, plan: Plan, images: ImageSet, todo: list[Batch], places: list[str]) -> Iterator[np.ndarray]:
    if isinstance(model, FeatureFiles):
        return (model.rows(images, plan.spec.kind, batch.partition, batch.start, batch.stop) for batch in todo)
    if plan.spec.kind == "text":
        return _texts(model.to(places[0]), plan, images, todo)
    return encoded(plan, model, images, todo, places)


def _texts(model: Any, plan: Plan, images: ImageSet, todo: list[Batch]) -> Iterator[np.ndarray]:
    """One row a picture, its concept's; every concept goes through the network once, so its rows are equal."""
    numbers, first = np.unique(images.concept_index, return_index=True)
    texts = [plan.text(images.concept_of(int(index))) for index in first]
    size = plan.spec.batch_size
    table = np.concatenate([model.encode_texts(texts[at : at + size]) for at in range(0, len(texts), size)])
    for batch in todo:
        yield table[np.searchsorted(numbers, images.concept_index[batch.index(images)])]
