"""One training of an encoder, the run's or that of a fold: trainer, resumption, the selected weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning

from eegrecon.callbacks.retrieval import RetrievalCallback
from eegrecon.datamodule import ThingsDataModule
from eegrecon.models.encoders.ridge import Ridge
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.stages.encoder_build import build_module, build_objective
from eegrecon.stages.fitting import fit, training_trainer
from eegrecon.stages.ridge_fit import fit_closed_form

STAGE = "train-encoder"


def build_trainer(cfg: Any, directory: Path) -> lightning.Trainer:
    """The trainer of the config's `trainer` block with this stage's callbacks."""
    return training_trainer(STAGE, cfg, directory, RetrievalCallback(build_objective(cfg)))


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
    return fit(cfg, module, data, trainer, last=last)
