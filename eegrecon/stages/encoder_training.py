"""One training of an encoder, the run's or that of a fold: trainer, resumption, the selected weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from eegrecon.callbacks.average import MovingAverage
from eegrecon.callbacks.monitoring import TrainingMonitor
from eegrecon.callbacks.resume import EpochSeed
from eegrecon.callbacks.retrieval import RetrievalCallback
from eegrecon.datamodule import ThingsDataModule
from eegrecon.models.encoders.ridge import Ridge
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.stages.encoder_build import build_module, build_objective
from eegrecon.stages.ridge_fit import fit_closed_form
from eegrecon.stages.trainer import build_trainer as stage_trainer
from eegrecon.stages.trainer import checkpoints

STAGE = "train-encoder"


def build_trainer(cfg: Any, directory: Path) -> lightning.Trainer:
    """The trainer of the config's `trainer` block with this stage's callbacks."""
    select = cfg.select
    saves = checkpoints(directory, select.monitor, select.mode)
    callbacks = [EpochSeed(cfg.seed), TrainingMonitor(), RetrievalCallback(build_objective(cfg))]
    callbacks += [MovingAverage(cfg.ema_decay)] if cfg.ema_decay else []
    callbacks += [EarlyStopping(select.monitor, mode=select.mode, patience=select.patience)] if select.patience else []
    callbacks += saves
    # The data module shares rows out itself.
    return stage_trainer(STAGE, cfg.trainer, directory, callbacks, use_distributed_sampler=False)


def fit_encoder(
    cfg: Any, network: AlignedEncoder, data: ThingsDataModule, trainer: lightning.Trainer, *, last: Path
) -> dict[str, Any]:
    """Train the network, or fit it in closed form if it is ridge, and put the selected weights into it.

    Args:
        cfg: `TrainEncoderConfig`.
        network: Takes the weights.
        data: What to train and validate on.
        trainer: From `build_trainer`.
        last: The checkpoint to continue from, if it is there.

    Returns:
        The manifest's `selection`.

    Raises:
        KeyboardInterrupt: The user stopped it; `last` is there.
    """
    if isinstance(network.encoder, Ridge):
        return fit_closed_form(network.encoder, data, network)
    module = build_module(cfg, network, data)
    if cfg.compile:
        network.compile()  # in place: the state dict keeps its names
    with warnings.catch_warnings():
        # It is our own unfinished run that is there.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.strategy.barrier()
    best, latest = (saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint))
    chosen = best if cfg.select.epoch == "best" else latest
    kept = torch.load(chosen.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(kept["state_dict"], strict=True)
    rule = f"best {cfg.select.monitor}" if chosen is best else "last epoch"
    score = best.best_model_score if chosen is best else trainer.callback_metrics.get(cfg.select.monitor)
    monitor = next(one for one in trainer.callbacks if isinstance(one, TrainingMonitor))  # type: ignore[attr-defined]
    return {
        "epoch": int(kept["epoch"]),
        "monitor": cfg.select.monitor,
        "value": None if score is None else float(score),
        "ema": cfg.ema_decay > 0,
        "rule": rule,
        "epochs": int(trainer.current_epoch),
        "trials_per_second": monitor.trials_per_second,
    }
