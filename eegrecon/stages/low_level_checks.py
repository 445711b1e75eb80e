"""What a `train-low-level` config may not ask for, and what its target must be; imports no torch."""

from __future__ import annotations

from pathlib import Path

from eegrecon.config import OPTIMS, AugmentConfig, TrainLowLevelConfig
from eegrecon.data.layout import target_dir
from eegrecon.data.targets import TargetStore
from eegrecon.errors import ConfigError
from eegrecon.registry import check_args, lookup
from eegrecon.stages.training_checks import (
    EVERY_EPOCH,
    NEEDED_FLAGS,
    flag_problems,
    process_count,
    selection_problems,
    set_by_stage,
)

STAGE = "train-low-level"
RIDGE_MONITOR = "val/latent_skill"
MODES = {
    "val/latent_skill": "max",
    "val/latent_correlation": "max",
    "val/latent_two_way": "max",
    "val/latent_mse": "min",
    "val/latent_l1": "min",
}


def check_config(cfg: TrainLowLevelConfig) -> None:
    """Refuse what can be seen in the config alone to fail or to be ignored.

    Raises:
        ConfigError: Lists every problem.
    """
    problems, loss = [], cfg.loss
    if not (loss.l1 or loss.mse or loss.image):
        problems.append("loss.l1, loss.mse and loss.image are all 0, so nothing would be learned")
    if loss.image and not cfg.vae:
        problems.append(f"loss.image is {loss.image}, but vae is empty: say whose autoencoder decodes pictures")
    problems += _ridge_problems(cfg) if cfg.network.name == "ridge" else []
    problems += selection_problems(cfg, MODES)
    processes = process_count(cfg.trainer)
    if cfg.network.name != "ridge" and cfg.loader.batch_size // processes < 2:
        problems.append(
            f"loader.batch_size is {cfg.loader.batch_size} over {processes} process{'es' * (processes > 1)}, but batch "
            "normalisation needs at least 2 rows a process"
        )
    problems += flag_problems(STAGE, cfg.trainer, NEEDED_FLAGS | EVERY_EPOCH) + set_by_stage(cfg.trainer)
    if problems:
        raise ConfigError("This config cannot be trained: " + "; ".join(problems) + ".")
    check_args(lookup(OPTIMS, cfg.optim.name), cfg.optim, {"params": None})


def check_target(cfg: TrainLowLevelConfig) -> TargetStore:
    """The store of `latent_target`, which must hold VAE latents that were scaled already.

    Raises:
        ConfigError: It holds something else.
        DataError: It is missing or broken.
    """
    store = TargetStore(target_dir(Path(cfg.data.root) / cfg.data.set, cfg.latent_target.name))
    if store.kind != "vae_latent" or store.scaling_factor is None:
        raise ConfigError(
            f"latent_target.name is {store.name!r}, a store of kind {store.kind!r} with scaling_factor "
            f"{store.scaling_factor}, but {STAGE} predicts latents times a VAE's scaling_factor: name a store of kind "
            "'vae_latent' that extract-targets made."
        )
    return store


def _ridge_problems(cfg: TrainLowLevelConfig) -> list[str]:
    asked = {"augment": cfg.augment != AugmentConfig(), "ema_decay": bool(cfg.ema_decay)}
    problems = [f"{key} is set, but the network ridge is a closed form without it" for key, on in asked.items() if on]
    if cfg.loss.l1 or cfg.loss.image:
        problems.append(
            f"loss.l1 is {cfg.loss.l1} and loss.image {cfg.loss.image}, but the network ridge minimises the mse alone: "
            "set both to 0 and loss.mse to 1"
        )
    if cfg.select.monitor != RIDGE_MONITOR:
        problems.append(
            f"select.monitor is {cfg.select.monitor!r}, but the network ridge chooses its penalty by {RIDGE_MONITOR}"
        )
    return problems
