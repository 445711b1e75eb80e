"""One training by gradients: trainer with the shared callbacks, resumption, and the selected epoch's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from eegrecon.callbacks.average import MovingAverage
from eegrecon.callbacks.monitoring import TrainingMonitor
from eegrecon.callbacks.resume import EpochSeed
from eegrecon.datamodule import ThingsDataModule
from eegrecon.stages.trainer import build_trainer, checkpoints, fit_from, kept_by


def training_trainer(stage: str, cfg: Any, directory: Path, scores: lightning.Callback) -> lightning.Trainer:
    """The trainer of the config's `trainer` block with the callbacks of training.

    Args:
        stage: The verb, for errors.
        cfg: A config with `trainer`, `select`, `ema_decay` and `seed`.
        directory: The stage's.
        scores: Logs what `select.monitor` names.

    Raises:
        ConfigError: The block has a flag that `lightning.Trainer` does not know.
    """
    select = cfg.select
    callbacks = [EpochSeed(cfg.seed), TrainingMonitor(), scores]
    callbacks += [MovingAverage(cfg.ema_decay)] if cfg.ema_decay else []
    callbacks += [EarlyStopping(select.monitor, mode=select.mode, patience=select.patience)] if select.patience else []
    callbacks += checkpoints(directory, select.monitor, select.mode)
    # The data module shares rows out itself.
    return build_trainer(stage, cfg.trainer, directory, callbacks, use_distributed_sampler=False)


def fit(
    cfg: Any, module: lightning.LightningModule, data: ThingsDataModule, trainer: lightning.Trainer, *, last: Path
) -> dict[str, Any]:
    """Train the module and put the selected epoch's weights into it.

    Args:
        cfg: A config with `select` and `ema_decay`.
        module: Takes the weights.
        data: What to train and validate on.
        trainer: From `training_trainer`.
        last: The checkpoint to continue from, if it is there.

    Returns:
        The manifest's `selection`.

    Raises:
        ConfigError: It stopped before an epoch was over.
        KeyboardInterrupt: The user stopped it; `last` is there.
    """
    fit_from(trainer, module, last, datamodule=data)
    trainer.strategy.barrier()
    best, latest = (saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint))
    chosen = best if cfg.select.epoch == "best" else latest
    kept = kept_by(chosen)
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
