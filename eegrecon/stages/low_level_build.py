"""What `train-low-level` trains and on what: data module, network with its scaling, module; and the closed form."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from eegrecon.config import LOW_LEVEL, TrainLowLevelConfig
from eegrecon.data.batches import TrialDataset
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ConfigError
from eegrecon.losses.latents import LatentObjective
from eegrecon.metrics.functional.latents import latent_scores
from eegrecon.models.encoders.ridge import fit_ridge
from eegrecon.models.low_level.ridge import RidgeLatents
from eegrecon.models.low_level.wrapper import LowLevelDecoder
from eegrecon.modules.low_level import TARGET, LowLevelModule
from eegrecon.registry import resolve
from eegrecon.stages.data_module import data_module
from eegrecon.stages.encoder_build import build_augment, optimizer_factory
from eegrecon.stages.low_level_checks import RIDGE_MONITOR


def build_data(cfg: TrainLowLevelConfig) -> ThingsDataModule:
    """EEG beside the latents of the pictures; headers are read and checked, arrays are not.

    Raises:
        ConfigError: A choice does not fit.
        DataError: A store is missing or broken.
    """
    targets = {TARGET: cfg.latent_target}
    more = {"loader": cfg.loader, "permute_labels": cfg.permute_labels}
    return data_module("encoder", cfg.data, targets, seed=cfg.seed, **more)  # type: ignore[arg-type]


def build_network(cfg: TrainLowLevelConfig, data: ThingsDataModule) -> LowLevelDecoder:
    """The network with the training data's moments, of channels and latents (reads the training EEG and latents).

    Raises:
        ConfigError: An argument or the latents' shape does not fit, or a latent channel is constant.
    """
    shape = data.target_shapes[TARGET]
    network = resolve(LOW_LEVEL, cfg.network, n_chans=data.n_chans, n_times=data.n_times, latent_shape=shape)
    mean, std = latent_moments(data)
    try:
        return LowLevelDecoder(
            network,
            data.channel_mean,
            data.channel_std,
            mean,
            std,
            known_subjects=data.subjects,
            standardise=cfg.target_scale == "std",
        )
    except ValueError as error:
        raise ConfigError(f"The targets {cfg.latent_target.name!r} cannot be learned: {error}.") from error


def latent_moments(data: ThingsDataModule) -> tuple[Tensor, Tensor]:
    """Over the training pictures, each once: mean latent (c, h, w), and each channel's deviation from it (c, 1, 1)."""
    dataset = data.dataset("train")
    assert isinstance(dataset, TrialDataset)
    latents = dataset.targets[TARGET]
    mean = latents.double().mean(0)
    square = torch.zeros(len(mean), dtype=torch.float64)
    for part in latents.split(1024):  # the latents of THINGS-EEG2 take a gigabyte, in double two
        square += (part.double() - mean).square().sum((0, 2, 3))
    std = (square / (latents.numel() / len(mean))).sqrt()
    return mean.float(), std[:, None, None].float()


def build_module(
    cfg: TrainLowLevelConfig, network: LowLevelDecoder, data: ThingsDataModule, autoencoder: Any
) -> LowLevelModule:
    """The network with its loss, optimiser and what is done to training rows.

    Args:
        cfg: The config.
        network: From `build_network`.
        data: For the sampling rate.
        autoencoder: That of `cfg.vae`, or None.
    """
    return LowLevelModule(
        network,
        optimizer_factory(cfg.optim),
        LatentObjective(**asdict(cfg.loss)),
        autoencoder=autoencoder,
        augment=build_augment(cfg, data),
        seed=cfg.seed,
    )


def fit_closed_form(network: LowLevelDecoder, data: ThingsDataModule) -> dict[str, Any] | None:
    """Fit ridge on averaged training trials, its penalty chosen by validation skill; None: another network.

    Returns:
        The manifest's `selection`.

    Raises:
        ConfigError: There are more training pictures than a fit in memory is for.
    """
    linear = network.network
    if not isinstance(linear, RidgeLatents):
        return None
    train, val = data.averaged("train"), data.averaged("val")

    def inputs(batch: dict[str, Any]) -> Tensor:
        mean, std = network.channel_mean[:, None], network.channel_std[:, None]
        return linear.ridge.bins((batch["eeg"] - mean) / std).flatten(1)

    def deviations(batch: dict[str, Any]) -> Tensor:
        latents = batch["targets"][TARGET]
        return (latents - network.latent_mean) / network.latent_std if network.standardise else latents

    true = val["targets"][TARGET]

    def score(pred: Tensor) -> float:
        out = pred.view_as(true)
        latents = network.latent_mean + out * network.latent_std if network.standardise else out
        return latent_scores(latents, true, network.latent_mean)["latent_skill"]

    try:
        fit = fit_ridge(
            inputs(train),
            deviations(train).flatten(1),
            val_x=inputs(val),
            score=score,
            alphas=linear.ridge.alphas,
        )
    except ValueError as error:  # constant inputs
        raise ConfigError(f"The network ridge cannot be fitted: {error}.") from error
    linear.ridge.set_weights(fit.weight, fit.bias)
    scores = {str(alpha): value for alpha, value in fit.scores.items()}
    chosen = {"monitor": RIDGE_MONITOR, "value": fit.scores[fit.alpha], "rule": f"best {RIDGE_MONITOR}"}
    return {"closed_form": True, "alpha": fit.alpha, "scores": scores, **chosen, "ema": False}
