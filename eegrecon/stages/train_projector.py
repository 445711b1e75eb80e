"""`train-projector`: from image embeddings to the visual tokens a captioner reads, learnt from pictures alone.

It lies beside the target stores, `<root>/<set>/projectors/<name>`, not in a run: no EEG goes into it, so every subject
and seed of a set shares it. Held-out concepts are held out here too, and test files are never opened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import (
    Manifest,
    atomic_write,
    input_record,
    open_stage,
    read_manifest,
    write_json,
    write_manifest,
)
from eegrecon.config import TrainProjectorConfig, config_hash, to_yaml
from eegrecon.errors import ConfigError
from eegrecon.stages.training_checks import NEEDED_FLAGS, flag_problems, set_by_stage

if TYPE_CHECKING:
    import numpy as np

    from eegrecon.data import ImageSet, TargetStore

STAGE = "train-projector"
WEIGHTS, METRICS = "model.safetensors", "metrics.json"


def run(cfg: TrainProjectorConfig, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Train the projector of EEG_Image_decode (`models.captioners.projector`) and score it on held-out concepts.

    Writes `model.safetensors` (the last epoch's, as the paper's), `metrics.json`, `tensorboard/` and the manifest; its
    `interface` is the image embedding's, with the captioner's under `captioner`. An interrupted run continues from its
    last epoch.

    Args:
        cfg: The resolved config.
        directory: The set's folder `<root>/<set>`.
        command: What was typed.
        overwrite: Replace a finished result.

    Raises:
        ArtifactError: A finished one of another config or other stores is there.
        ConfigError: A store is of the wrong kind, or an argument does not fit.
        DataError: A store is missing or broken.
    """
    started = time.monotonic()
    check_trainer(cfg.trainer)
    from eegrecon.data import ImageSet, TargetStore, target_dir
    from eegrecon.data.layout import projector_dir

    images = ImageSet.from_root(Path(directory))
    homes = {"target": target_dir(directory, cfg.target.name), "tokens": target_dir(directory, cfg.tokens)}
    image = TargetStore(homes["target"], images, l2_normalise=cfg.target.l2_normalise)
    tokens = TargetStore(homes["tokens"], images)
    check_stores(image, tokens)
    home = projector_dir(Path(directory), cfg.name)
    inputs = {name: input_record(path) for name, path in homes.items()}
    state = open_stage(home, STAGE, config_hash(cfg), to_yaml(cfg), inputs, overwrite)
    if state == "up_to_date":
        return read_manifest(home)

    from safetensors.torch import save

    from eegrecon.stages.trainer import trained_manifest

    rows, split = held_out_rows(images, cfg)
    trainer, module, scores = _fit(cfg, home, image, tokens, rows)
    manifest = trained_manifest(
        STAGE,
        command,
        cfg,
        trainer,
        data={"set": cfg.data.set, "split": split},
        interface={
            **image.interface(),
            "captioner": {
                "model": tokens.header["model"],
                "weights_tag": tokens.header["weights_tag"],
                "n_tokens": tokens.shape[0],
                "width": tokens.shape[1],
            },
        },
        inputs=inputs,
    )
    if not trainer.is_global_zero:
        return manifest
    with atomic_write(home / WEIGHTS) as file:
        file.write(save({name: value.cpu().contiguous() for name, value in module.projector.state_dict().items()}))
    write_json(
        home / METRICS,
        {
            "schema": 1,
            "protocol": {"split": split, "mean": "the mean training tokens, whatever the picture"},
            "metrics": {name: {"value": value} for name, value in scores.items()},
        },
    )
    manifest.outputs = {name: {} for name in (WEIGHTS, METRICS)}
    manifest.metrics = scores
    manifest.wall_seconds = time.monotonic() - started
    return write_manifest(home, manifest)


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuse a trainer block by which nothing would be trained, or not all of it kept.

    Raises:
        ConfigError: Lists every problem.
    """
    problems = flag_problems(STAGE, trainer, NEEDED_FLAGS | {"limit_train_batches": (1.0, None)})
    problems += set_by_stage(trainer)
    epochs = trainer.get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:
        problems.append(f"trainer.max_epochs is {epochs!r}, but at least one epoch must be trained")
    if problems:
        raise ConfigError("This config cannot be trained: " + "; ".join(problems) + ".")


def check_stores(image: TargetStore, tokens: TargetStore) -> None:
    """Check that one store holds image embeddings and the other a captioner's visual tokens.

    Raises:
        ConfigError: Names the key, what the store holds and what to name instead.
    """
    if image.kind != "image" or len(image.shape) != 1:
        raise ConfigError(
            f"target.name is {image.name!r}, which holds the kind {image.kind} of shape {image.shape}: name a store of "
            "image embeddings, the one that the prior is trained on."
        )
    if tokens.kind != "layer" or len(tokens.shape) != 2:
        raise ConfigError(
            f"tokens is {tokens.name!r}, which holds the kind {tokens.kind} of shape {tokens.shape}, expected kind "
            "layer of shape (n_tokens, width): name a store that `extract-targets` made with the model git."
        )


def held_out_rows(images: ImageSet, cfg: TrainProjectorConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Which pictures train and which validate (`image_index`), and how that was decided, for the manifest."""
    from eegrecon.data import make_split

    split = make_split(
        images,
        images.train_index,
        set=cfg.data.set,
        protocol="joint",  # the concepts that are held out are the same under every protocol
        subject=[],
        val_concepts=cfg.data.split.val_concepts,
        split_seed=cfg.data.split.split_seed,
    )
    described = split.describe()
    return {"train": split.train, "val": split.val}, {
        key: described[key] for key in ("val_concepts", "split_seed", "n_images", "sha256")
    }


def _fit(
    cfg: TrainProjectorConfig, home: Path, image: TargetStore, tokens: TargetStore, rows: dict[str, np.ndarray]
) -> tuple[Any, Any, dict[str, float]]:
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.utils.data import DataLoader, Dataset

    from eegrecon.config import OPTIMS
    from eegrecon.data.batches import GlobalBatchSampler, ShardBatchSampler
    from eegrecon.models.captioners.projector import PixelProjector
    from eegrecon.modules.projector import ProjectorModule
    from eegrecon.registry import resolve
    from eegrecon.stages.trainer import build_trainer, fit_from

    class Pairs(Dataset[Any]):
        """Batches of rows by their place; tokens stay on disk (16,540 x 257 x 1024 of float16 are 8.7 GB)."""

        def __init__(self, index: np.ndarray) -> None:
            self.index = index

        def __len__(self) -> int:
            return len(self.index)

        def __getitem__(self, places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            wanted = self.index[places]
            return torch.from_numpy(image.rows(wanted)), torch.from_numpy(tokens.rows(wanted))

    if len(rows["train"]) < cfg.batch_size:
        raise ConfigError(
            f"batch_size is {cfg.batch_size}, but only {len(rows['train'])} pictures train: lower it, or "
            "data.split.val_concepts."
        )
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    projector = PixelProjector(image.dim, *tokens.shape)
    module = ProjectorModule(projector, lambda parameters: resolve(OPTIMS, cfg.optim, params=parameters))
    saves = ModelCheckpoint(
        home / "checkpoints", filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = build_trainer(STAGE, cfg.trainer, home, [saves], num_sanity_val_steps=0, use_distributed_sampler=False)
    place = (trainer.global_rank, trainer.world_size)
    pairs = {name: Pairs(index) for name, index in rows.items()}
    samplers = {
        "train": GlobalBatchSampler(len(rows["train"]), cfg.batch_size, *place, cfg.seed, key="batch_size"),
        "val": ShardBatchSampler(len(rows["val"]), 256, *place),
    }
    loaders = {name: DataLoader(pairs[name], batch_size=None, sampler=sampler) for name, sampler in samplers.items()}
    fit_from(trainer, module, home / "checkpoints" / "last.ckpt", loaders["train"], loaders["val"])
    whole = DataLoader(pairs["val"], batch_size=None, sampler=ShardBatchSampler(len(rows["val"]), 256))
    return trainer, module, score(module, whole, _mean_tokens(tokens, rows["train"]))


def _mean_tokens(tokens: TargetStore, index: np.ndarray, at_once: int = 256) -> Any:
    import torch

    total = sum(
        torch.from_numpy(tokens.rows(index[start : start + at_once])).double().sum(0)
        for start in range(0, len(index), at_once)
    )
    return total / len(index)


def score(module: Any, loader: Any, mean: Any) -> dict[str, float]:
    """`val/projector_mse` and, to compare it with, that of answering `mean` (n_tokens, width) to every picture."""
    import torch

    module.cpu().eval()
    sums, n = torch.zeros(2, dtype=torch.float64), 0
    with torch.inference_mode():
        for image_embeds, tokens in loader:
            made = module.projector(image_embeds)
            for i, guess in enumerate((made, mean)):
                sums[i] += (guess.double() - tokens.double()).square().mean((1, 2)).sum()
            n += len(tokens)
    return {"val/projector_mse": float(sums[0] / n), "val/projector_mse_mean": float(sums[1] / n)} if n else {}
