"""What `train-encoder` trains and on what: from the config to data module, network, objective and module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from eegrecon.config import ENCODERS, IMAGE_PROJECTIONS, LATENT_HEADS, OPTIMS, Choice, TargetConfig
from eegrecon.data.augment import Augment
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ConfigError
from eegrecon.losses.objective import EncoderObjective
from eegrecon.models.encoders.ridge import Ridge
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.modules.encoder import EncoderModule
from eegrecon.modules.target_levels import LevelMixing
from eegrecon.registry import resolve
from eegrecon.stages.data_module import data_module, ladder


def targets_of(cfg: Any) -> dict[str, TargetConfig]:
    """Key in the batch to target: the image, and what the loss has a weight for."""
    targets = {"image": cfg.target}
    if cfg.loss.text > 0:
        targets["text"] = cfg.text_target
    if cfg.loss.vae_latent > 0:
        targets["vae_latent"] = cfg.latent_target
    return targets


def target_names(cfg: Any) -> dict[str, str]:
    """Key in the config to the name of a store, for every store that is read."""
    keys = {"image": "target.name", "text": "text_target.name", "vae_latent": "latent_target.name"}
    names = {keys[key]: target.name for key, target in targets_of(cfg).items() if target.name}
    names |= {f"fusion_targets[{number}].name": target.name for number, target in enumerate(cfg.fusion_targets)}
    return names | {f"target.levels[{number}]": name for number, name in enumerate(cfg.target.levels)}


def build_data(cfg: Any, fold: tuple[int, int] | None = None) -> ThingsDataModule:
    """The data of stage 1; headers are read and checked, arrays are not.

    Args:
        cfg: `TrainEncoderConfig`.
        fold: (k, K): without the training pictures of fold k of K.

    Raises:
        ConfigError: A choice does not fit.
        DataError: A store is missing or broken.
    """
    return data_module(
        "encoder",
        cfg.data,
        targets_of(cfg),
        seed=cfg.seed,
        fusion=cfg.fusion_targets,
        loader=cfg.loader,
        permute_labels=cfg.permute_labels,
        fold=fold,
    )


def build_network(cfg: Any, data: ThingsDataModule) -> AlignedEncoder:
    """Encoder, latent head and image projection with the training data's channel moments (reads the training EEG).

    Raises:
        ConfigError: An argument does not fit, or a subject's id lies outside the encoder's table.
    """
    shapes = data.target_shapes
    projection = build_projection(cfg, data)
    dim = data.targets["image"].dim if projection is None else projection.dim
    encoder = resolve(ENCODERS, cfg.encoder, n_chans=data.n_chans, n_times=data.n_times, dim=dim)
    table = getattr(encoder, "n_subjects", None)
    if table is not None and not cfg.init.run:  # weights that training starts from know their own subjects
        _check_table(cfg, data, table)
    head = None
    # Ridge is a closed form for one target; a head beside it would stay untrained.
    if "vae_latent" in shapes and not isinstance(encoder, Ridge):
        head = resolve(LATENT_HEADS, cfg.latent_head, dim=dim, latent_shape=shapes["vae_latent"])
    return AlignedEncoder(
        encoder,
        head,
        data.channel_mean if cfg.standardise_eeg else torch.zeros(data.n_chans),
        data.channel_std if cfg.standardise_eeg else torch.ones(data.n_chans),
        image_projection=projection,
        known_subjects=data.subjects,
        logit_scale=cfg.loss.logit_scale_init,
        logit_bias=cfg.loss.logit_bias_init if cfg.loss.kind == "siglip" else None,
        learn_logit_scale=cfg.loss.learn_logit_scale,
    )


def _check_table(cfg: Any, data: ThingsDataModule, table: int) -> None:
    """Refuse a subject without a row, and one that would be tested on a row which nothing has trained."""
    if max(data.subjects) > table:
        raise ConfigError(
            f"data.subjects holds {max(data.subjects)}, but the encoder {cfg.encoder.name!r} has rows for subjects 1 "
            f"to {table}: set encoder.args.n_subjects={max(data.subjects)} or more."
        )
    unseen = sorted(set(data.test_subjects) - set(data.subjects))
    if unseen and not cfg.subject_dropout:
        raise ConfigError(
            f"The encoder {cfg.encoder.name!r} has a row for each subject, and subject {', '.join(map(str, unseen))}, "
            "who is left out, would get that of unknown subjects, which nothing trains while subject_dropout is 0: set "
            "subject_dropout (0.2, say), or choose an encoder without rows for subjects."
        )


def build_projection(cfg: Any, data: ThingsDataModule) -> Any:
    """The image side's learned projection (a module with `dim`), or None."""
    return resolve(IMAGE_PROJECTIONS, cfg.image_projection, target_dim=data.targets["image"].dim)


def build_module(cfg: Any, network: AlignedEncoder, data: ThingsDataModule) -> EncoderModule:
    """The network with its objective, optimiser and what is done to training rows."""
    names = ladder(cfg.target)
    levels = None
    if names:
        start = names.index(cfg.target.name)
        levels = LevelMixing(cfg.target.mixing, len(names), start, len(data.images))
    return EncoderModule(
        network,
        optimizer_factory(cfg.optim),
        build_objective(cfg),
        levels=levels,
        subject_dropout=cfg.subject_dropout,
        augment=build_augment(cfg, data),
        seed=cfg.seed,
    )


def build_augment(cfg: Any, data: ThingsDataModule) -> Augment:
    """What is done to training trials, seconds turned into samples."""
    block = asdict(cfg.augment)
    return Augment(**{**block, "time_shift": round(cfg.augment.time_shift * data.sfreq)})


def build_objective(cfg: Any) -> EncoderObjective:
    """The loss block without what only initialises the network."""
    block = asdict(cfg.loss)
    return EncoderObjective(**{item.name: block[item.name] for item in fields(EncoderObjective)})


def optimizer_factory(choice: Choice) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """From a config's `optim` to what a module calls with its parameters."""
    return lambda parameters: resolve(OPTIMS, choice, params=parameters)


def interface_of(cfg: Any, data: ThingsDataModule, network: AlignedEncoder) -> dict[str, Any]:
    """The manifest's `interface`: the target space and, where there are any, latents and projection.

    `latent` says whose latents the latent head predicts (`TargetStore.latent_interface`).

    `projection` says that embeddings lie in a space of `embed_dim` numbers that only this network's `project_images`
    leads to, and not in the target's.
    """
    interface = data.targets["image"].interface()
    if network.latent_head is not None:
        interface["latent_shape"] = list(data.target_shapes["vae_latent"])
        interface["latent"] = data.targets["vae_latent"].latent_interface()
    if network.image_projection is not None:
        interface |= {"projection": cfg.image_projection.name, "embed_dim": network.image_projection.dim}
    return interface
