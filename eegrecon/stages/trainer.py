"""How every stage builds its `lightning.Trainer` from the config's `trainer:` block."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from eegrecon.artifacts import Manifest, new_manifest
from eegrecon.config import config_hash
from eegrecon.errors import ConfigError


def build_trainer(
    stage: str,
    block: Mapping[str, Any],
    directory: Path,
    callbacks: Sequence[lightning.Callback],
    **fixed: Any,
) -> lightning.Trainer:
    """Build the trainer: the stage's defaults, then the config's block, then what the stage fixes.

    Args:
        stage: the verb, for the error.
        block: the config's `trainer:` block; any Lightning flag.
        directory: the stage's directory; curves go to `tensorboard/` in it.
        callbacks: the stage's own; a progress bar is added unless the block turns it off.
        fixed: flags that the stage does not leave to the config.

    Raises:
        ConfigError: the block has a flag or a value that `lightning.Trainer` does not take.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_not_an_advert)
    flags = {
        "default_root_dir": directory,
        "enable_model_summary": False,
        "log_every_n_steps": 5,
        **block,
        **fixed,
        "logger": TensorBoardLogger(directory, name="tensorboard", version=""),
    }
    bar = [RichProgressBar()] if flags.get("enable_progress_bar", True) else []
    try:
        return lightning.Trainer(**{**flags, "callbacks": [*callbacks, *bar]})
    except (TypeError, ValueError, MisconfigurationException) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"The trainer block of the {stage} config does not fit: {said}.") from error


def checkpoints(directory: Path, monitor: str, mode: str, every_n_epochs: int = 1) -> list[ModelCheckpoint]:
    """Keep the best epoch (every validated one counts) and the last one (for resuming), in `checkpoints/`."""
    folder = directory / "checkpoints"
    shared: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    return [
        ModelCheckpoint(folder, filename="best", monitor=monitor, mode=mode, every_n_epochs=every_n_epochs, **shared),
        # Not `save_last=True`: that is the last epoch that was a best one, and a restart would repeat the others.
        ModelCheckpoint(folder, filename="last", **shared),
    ]


def kept_by(checkpoint: ModelCheckpoint) -> dict[str, Any]:
    """What a callback of `checkpoints` has kept.

    Raises:
        ConfigError: Nothing, since training stopped before an epoch was over.
    """
    if not checkpoint.best_model_path:
        raise ConfigError(
            "training stopped before an epoch was over and validated, so there is nothing to choose from: raise or "
            "remove trainer.max_steps, trainer.max_time and trainer.limit_train_batches."
        )
    return torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)


def fit_from(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    last: Path,
    train: Any = None,
    val: Any = None,
    datamodule: lightning.LightningDataModule | None = None,
) -> None:
    """`trainer.fit`, continued from the checkpoint `last` if it is there.

    Raises:
        KeyboardInterrupt: The user stopped it; the same command continues.
    """
    with warnings.catch_warnings(), interruptible(trainer):
        # A resumed run's checkpoints are there on purpose.
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        where = str(last) if last.is_file() else None
        trainer.fit(module, train, val, datamodule, where, weights_only=True)


@contextmanager
def interruptible(trainer: lightning.Trainer) -> Iterator[None]:
    """Ctrl-C as everywhere else: Lightning would end the process with code 1 and ignore further ones.

    Raises:
        KeyboardInterrupt: The user stopped the trainer.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from stop


def trained_manifest(stage: str, command: str, cfg: Any, trainer: lightning.Trainer, **fields: Any) -> Manifest:
    """Start the manifest of a stage that had a trainer: what ran, with which config and seed, on what."""
    return new_manifest(
        stage,
        command=command,
        config_hash=config_hash(cfg),
        seed=cfg.seed,
        device=str(trainer.strategy.root_device),
        world_size=trainer.world_size,
        precision=str(trainer.precision),
        **fields,
    )


def _not_an_advert(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
