"""`extract-targets`: what the networks are to predict for every picture, one store a target.

`directory` is the set's folder `<root>/<set>`. Each store `targets/<name>` is a stage directory of its own: adding a
target leaves the others up to date, and a killed run goes on behind the last picture that was written.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import Manifest, new_manifest, open_stage, read_manifest, sha256_file, write_manifest
from eegrecon.config import TARGET_MODELS, Choice, TargetSpec, config_hash, to_yaml
from eegrecon.data.images import ImageSet
from eegrecon.data.layout import IMAGES_JSON, target_dir
from eegrecon.data.targets import CLAIM, HEADER, TargetStore, TargetStoreWriter
from eegrecon.errors import ConfigError, DataError
from eegrecon.registry import resolve
from eegrecon.stages.progress import progress_bars

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
        ConfigError: A model's arguments or kind do not fit, or no target is named.
        DataError: Pictures or weights are missing, or a model gives values that are not finite.
    """
    directory = Path(directory)
    if not cfg.targets:
        raise ConfigError("extract-targets has nothing to do: name at least one target under targets.")
    for name, spec in cfg.targets.items():
        if spec.kind == "text":
            raise ConfigError(f"targets.{name}.kind is text, which comes with issue 5: use image or vae_latent.")
    images = ImageSet.from_root(directory)
    with progress_bars() as progress:
        for name, spec in cfg.targets.items():
            manifest = _extract(cfg, name, spec, images, command, overwrite, progress)
    return manifest


def _extract(
    cfg: Any, name: str, spec: TargetSpec, images: ImageSet, command: str, overwrite: bool, progress: Progress
) -> Manifest:
    started = time.monotonic()
    # A store's identity is its own entry; how many pictures go through the network at once is no part of it.
    own: dict[str, Any] = {"data": {"set": cfg.data.set}, "target": {"name": name, **asdict(spec)}}
    identity = {**own, "target": {key: value for key, value in own["target"].items() if key != "batch_size"}}
    inputs = {"images": {"path": str(images.set_root / IMAGES_JSON), "manifest_sha256": images.sha256}}
    if (weights := _weights_file(spec.model)) is not None and weights.is_file():
        inputs["weights"] = {"path": str(weights), "manifest_sha256": sha256_file(weights)}
    home = target_dir(images.set_root, name)
    task = progress.add_task(f"targets {name}", total=len(images))
    if open_stage(home, STAGE, config_hash(identity), to_yaml(own), inputs, overwrite) == "up_to_date":
        progress.update(task, completed=len(images))
        return read_manifest(home, verify=False)
    if overwrite:
        (home / CLAIM).unlink(missing_ok=True)  # start from nothing, not behind the partial rows
    model = resolve(TARGET_MODELS, spec.model)
    if model.kind != spec.kind:
        raise ConfigError(
            f"targets.{name}.kind is {spec.kind!r}, but the model {spec.model.name!r} gives {model.kind!r}: mend it."
        )
    _write(home, model, spec, images, progress, task)
    store = TargetStore(home, images)
    manifest = new_manifest(
        STAGE,
        command=command,
        config_hash=config_hash(identity),
        seed=cfg.seed,
        data={"set": cfg.data.set, "n_images": {p: len(store.open(p)[1]) for p in ("train", "test")}},
        interface=store.interface(),
        inputs=inputs,
        outputs={file: {} for file in FILES},
        wall_seconds=round(time.monotonic() - started, 1),
    )
    return write_manifest(home, manifest)


def _write(home: Path, model: Any, spec: TargetSpec, images: ImageSet, progress: Progress, task: TaskID) -> None:
    shape = tuple(model.shape) if hasattr(model, "shape") else (int(model.dim),)
    header = {key: value for key, value in model.header().items() if key != "dim"}
    writer = TargetStoreWriter(home, images, {"kind": spec.kind, **header}, shape)
    try:
        for partition, index in (("train", images.train_index), ("test", images.test_index)):
            done = writer.done(partition)
            progress.advance(task, done)
            for start in range(done, len(index), spec.batch_size):
                pictures = [images.load(int(i)) for i in index[start : start + spec.batch_size]]
                values = model.encode(pictures)
                if values.shape != (len(pictures), *shape):
                    raise DataError(
                        f"The model {spec.model.name!r} gave an array of shape {values.shape} for {len(pictures)} "
                        f"pictures, expected {(len(pictures), *shape)}: this is a fault of the model's loader."
                    )
                writer.append(partition, values)
                progress.advance(task, len(pictures))
    except BaseException:
        writer.suspend()
        raise
    writer.close()


def _weights_file(choice: Choice) -> Path | None:
    """The weight file whose change makes a store out of date, where there is a local one."""
    if choice.name == "pocket_clip":
        from eegrecon.models.vision import pocket_heads_file

        return Path(choice.args.get("heads") or pocket_heads_file())
    if choice.name == "sdxl_vae":
        from eegrecon.models.generators.latents import WEIGHTS
        from eegrecon.models.generators.sdxl import POCKET_DIRECTORY

        base = choice.args.get("base", "pocket")
        return (POCKET_DIRECTORY if base == "pocket" else Path(base)) / "vae" / WEIGHTS
    return None
