"""`train-prior`: stage 2, from EEG embeddings to image embeddings: a diffusion, a regression or nothing.

Everything about the inputs is checked before torch is imported, and every argument before anything is written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import (
    Manifest,
    atomic_write,
    open_stage,
    read_manifest,
    save_embeds,
    write_json,
    write_manifest,
)
from eegrecon.config import TrainPriorConfig, config_hash, to_dict, to_yaml
from eegrecon.stages.prior_checks import SAW_VALIDATION, STAGE, check_config, check_upstream

if TYPE_CHECKING:
    import lightning
    from torch import Tensor

    from eegrecon.datamodule import ThingsDataModule
    from eegrecon.modules.prior import PriorModule

WEIGHTS, METRICS, EMBEDS = "model.safetensors", "metrics.json", "embeds/val.safetensors"


def run(cfg: TrainPriorConfig, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Train the prior on the encoder's training embeddings; select and score it on held-out concepts.

    `prior.name=ridge` is fitted in closed form, `none` passes the EEG embedding on as it is; what they leave behind is
    of the same kind. Writes `model.safetensors` (`diffusion.scaled`: network, target and condition scaling),
    `metrics.json`, `embeds/val.safetensors` (with `pred_image_embeds`), `tensorboard/` and, last, the manifest. An
    interrupted run continues from `checkpoints/last.ckpt`. Test files are never opened.

    Args:
        cfg: The resolved config.
        directory: The run's `prior/`; `encoder/` is its sibling.
        command: What was typed.
        overwrite: Replace a finished result.

    Returns:
        The manifest (on other ranks than 0 an unwritten one).

    Raises:
        ArtifactError: The encoder is missing, changed, of another target space or of other data.
        ConfigError: An argument does not fit.
        DataError: A store is missing or broken.
    """
    started = time.monotonic()
    directory = Path(directory)
    check_config(cfg)
    upstream = check_upstream(cfg, directory.parent / "encoder")
    claim = (directory, STAGE, config_hash(cfg), to_yaml(cfg), upstream.inputs)
    if not overwrite and (directory / "manifest.json").exists() and open_stage(*claim) == "up_to_date":
        return read_manifest(directory)

    import lightning

    from eegrecon.stages.prior_build import build_data, build_module, build_trainer, without_training
    from eegrecon.stages.trainer import fit_from, trained_manifest

    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg, upstream)
    module = build_module(cfg, data)
    trainer = build_trainer(cfg, directory, data.images.concept_index)
    selection = without_training(module, data)
    open_stage(*claim, overwrite)
    if selection is None:
        fit_from(trainer, module, directory / "checkpoints" / "last.ckpt", datamodule=data)
    trainer.strategy.barrier()
    manifest = trained_manifest(
        STAGE,
        command,
        cfg,
        trainer,
        data=upstream.manifest.data,
        interface=upstream.interface,
        inputs=upstream.inputs,
    )
    if not trainer.is_global_zero:
        return manifest
    manifest.selection = select(cfg, trainer, module) if selection is None else selection
    if upstream.manifest.selection.get(SAW_VALIDATION):
        manifest.selection |= {SAW_VALIDATION: True}
        sys.stderr.write(
            "eegrecon: the encoder was trained on the validation concepts too, so this prior is chosen on pictures "
            "that the encoder has seen, and its val/ numbers are no estimate for new ones.\n"
        )
    scores = write_results(cfg, directory, module, data, manifest.selection)
    manifest.outputs = {name: {} for name in (WEIGHTS, METRICS, EMBEDS)}
    manifest.metrics = scores
    manifest.wall_seconds = time.monotonic() - started
    return write_manifest(directory, manifest)


def select(cfg: TrainPriorConfig, trainer: lightning.Trainer, module: PriorModule) -> dict[str, Any]:
    """Load the selected checkpoint's weights into the module; returns what the manifest says of it."""
    from eegrecon.stages.trainer import kept_by

    checkpoint: Any = trainer.checkpoint_callback
    state = kept_by(checkpoint)
    module.cpu().load_state_dict(state["state_dict"], strict=True)
    module.eval()
    value = checkpoint.best_model_score
    return {
        "monitor": checkpoint.monitor,
        "mode": cfg.select.mode,
        "value": float(value),
        "epoch": int(state["epoch"]),
        "ema": cfg.diffusion.ema_decay > 0,
    }


def write_results(
    cfg: TrainPriorConfig, directory: Path, module: PriorModule, data: ThingsDataModule, selection: Mapping[str, Any]
) -> dict[str, float]:
    """Write weights, validation samples and scores of the selected network; returns the scores by name."""
    import numpy as np
    import torch
    from safetensors.torch import save

    from eegrecon.callbacks.prior import score_prior

    with atomic_write(directory / WEIGHTS) as file:
        file.write(save({name: value.contiguous() for name, value in module.exported_state().items()}))
    with torch.no_grad():
        parts = [module.validation_step(batch, i) for i, batch in enumerate(data.embed_dataloader("val"))]
    rows: dict[str, Tensor] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    concept_index = torch.as_tensor(data.images.concept_index)
    scores = {f"val/{name}": value for name, value in score_prior(rows, concept_index).items()}
    save_embeds(
        directory / EMBEDS,
        rows["eeg_embeds"].numpy(),
        rows["image_index"].numpy(),
        rows["subject"].numpy(),
        np.full(len(rows["subject"]), -1),
        {"pred_image_embeds": rows["pred_image_embeds"].numpy()},
    )
    protocol = {
        "split": data.split.describe(),
        "subjects": data.subjects,
        "test_subjects": data.test_subjects,
        "selection": dict(selection),
        "prior": cfg.prior.name,
        "embeds": cfg.embeds,
        **to_dict(cfg.sample),
        "shuffled": "the true embedding of the picture half the validation split away",
        "retrieval": "cosine, galleries of one picture a held-out concept",
        "seed": cfg.seed,
    }
    entries = {name: {"value": value} for name, value in scores.items()}
    write_json(directory / METRICS, {"schema": 1, "protocol": protocol, "metrics": entries})
    return scores
