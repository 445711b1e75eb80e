"""What a `train-encoder` config may not ask for, found before anything is read or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eegrecon.config import OPTIMS, AugmentConfig, did_you_mean
from eegrecon.data.layout import target_dir
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ConfigError
from eegrecon.registry import check_args, lookup
from eegrecon.stages.encoder_build import build_projection, target_names
from eegrecon.stages.training_checks import (
    EVERY_EPOCH,
    NEEDED_FLAGS,
    flag_problems,
    process_count,
    selection_problems,
    set_by_stage,
)


def check_config(cfg: Any) -> None:
    """Refuse what can be seen in the config alone to fail or to be ignored.

    Raises:
        ConfigError: Lists every problem.
    """
    problems = [*_target_problems(cfg), *_loss_problems(cfg), *_training_problems(cfg), *_fold_problems(cfg)]
    if problems:
        raise ConfigError("This config cannot be trained: " + "; ".join(problems) + ".")
    check_args(lookup(OPTIMS, cfg.optim.name), cfg.optim, {"params": None})


def check_targets(cfg: Any, data: ThingsDataModule) -> None:
    """Refuse targets that do not fit each other or the loss.

    Raises:
        ConfigError: Lists every problem.
    """
    problems = []
    projection = build_projection(cfg, data)
    dim = data.targets["image"].dim if projection is None else projection.dim
    if "text" in data.targets:
        text = data.targets["text"]
        if text.kind != "text" or text.shape != (dim,):
            problems.append(
                f"text_target.name is {text.name!r}, whose targets are of kind {text.kind} and shape {text.shape}, but "
                f"EEG embeddings of {dim} numbers are compared with texts"
            )
    if cfg.target.mixing == "uncertainty":
        blur = _blurs([level.header["blur"] for level in data.levels])
        if blur != sorted(blur):
            problems.append(
                f"target.levels are blurred by {', '.join(f'{amount:g}' for amount in blur)} in their order "
                "(target.name first, unless it is among them), but mixing uncertainty needs them sharp first"
            )
    if problems:
        raise ConfigError("These targets cannot be trained on together: " + "; ".join(problems) + ".")


def _blurs(headers: list[Any]) -> list[float]:
    """Each level's sigma in pixels; none where pictures were blurred at different sizes: those cannot be compared."""
    found = [header if isinstance(header, dict) else {"gaussian_sigma_px": header} for header in headers]
    sigmas = [float(blur.get("gaussian_sigma_px") or 0) for blur in found]
    sizes = {blur.get("resized_to_px") for blur, sigma in zip(found, sigmas, strict=True) if sigma}
    return sigmas if len(sizes) <= 1 else []


def _target_problems(cfg: Any) -> list[str]:
    problems = []
    for weight, key in (("vae_latent", "latent_target"), ("text", "text_target")):
        value = getattr(cfg.loss, weight)
        if value > 0 and not getattr(cfg, key).name:
            problems.append(f"loss.{weight} is {value} but {key}.name is empty: name a target store, or set it to 0")
    levels, mixing = cfg.target.levels, cfg.target.mixing
    if mixing != "none" and not levels:
        problems.append(f"target.mixing is {mixing!r}, but target.levels names nothing to mix")
    if levels and mixing == "none":
        problems.append("target.levels are named, but target.mixing is 'none', which would ignore them")
    if len(set(levels)) < len(levels):
        problems.append(f"target.levels names a store twice: {', '.join(levels)}")
    folder = target_dir(Path(cfg.data.root) / cfg.data.set, "x").parent
    there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    for key, name in target_names(cfg).items():
        if there and name not in there:  # a set without any target is told to make some, by whoever opens it
            problems.append(f"{key} is {name!r}, which is not in {folder} ({did_you_mean(name, there)})")
    return problems


def _loss_problems(cfg: Any) -> list[str]:
    problems = []
    loss, projected = cfg.loss, cfg.image_projection.name != "none"
    weights = {name: getattr(loss, name) for name in ("contrastive", "mse", "cosine", "text", "vae_latent")}
    if not any(weights.values()) or not loss.scale:
        problems.append("every weight of the loss (or loss.scale) is 0, so nothing would be learned")
    for name in ("mse", "cosine"):
        if projected and weights[name] > 0:
            problems.append(
                f"loss.{name} is {weights[name]}, a regression onto the image embedding, but image_projection is "
                f"{cfg.image_projection.name!r}: EEG embeddings have another space, and a learned target could be met "
                "by a constant"
            )
    if cfg.encoder.name == "ridge":
        asked = {"image_projection": projected, "target.mixing": cfg.target.mixing != "none"}
        asked |= {name: bool(getattr(cfg, name)) for name in ("subject_dropout", "ema_decay", "compile")}
        asked |= {"augment": cfg.augment != AugmentConfig(), "init.run": bool(cfg.init.run)}
        said = "is set, but the encoder ridge is a closed form without it"
        problems += [f"{key} {said}" for key, on in asked.items() if on]
    return problems


def _training_problems(cfg: Any) -> list[str]:
    problems = []
    processes = process_count(cfg.trainer)
    if cfg.encoder.name != "ridge" and cfg.loader.batch_size // processes < 2:
        problems.append(
            f"loader.batch_size is {cfg.loader.batch_size} over {processes} process{'es' * (processes > 1)}, but the "
            f"loss {cfg.loss.kind} tells pictures of a batch apart and needs at least 2 rows a process"
        )
    modes = {monitor: "max" if "retrieval" in monitor else "min" for monitor in offered_monitors(cfg)}
    problems += selection_problems(cfg, modes)
    if cfg.augment.mixup > 0 and cfg.target.mixing == "uncertainty":
        problems.append(
            f"augment.mixup is {cfg.augment.mixup}, but target.mixing 'uncertainty' follows single pictures, which "
            "mixed trials do not show"
        )
    problems += flag_problems("train-encoder", cfg.trainer, NEEDED_FLAGS | EVERY_EPOCH)
    return problems + set_by_stage(cfg.trainer)


def _fold_problems(cfg: Any) -> list[str]:
    if not cfg.cross_fit:
        return []
    problems = ["cross_fit is 1, but there must be at least 2 folds (0: none)"] if cfg.cross_fit == 1 else []
    asked = {
        "permute_labels": (cfg.permute_labels, "every fold would permute its pictures in its own way"),
        "data.keep_minutes": (cfg.data.keep_minutes is not None, "a fold would take other trials instead of its own"),
        "init.run": (bool(cfg.init.run), "that run has seen the concepts that a fold leaves out"),
        "image_projection": (
            cfg.image_projection.name != "none",
            "every fold would learn a space of its own, which embeddings cannot share",
        ),
    }
    return problems + [f"cross_fit cannot go with {key}: {why}" for key, (on, why) in asked.items() if on]


def offered_monitors(cfg: Any) -> list[str]:
    """What `select.monitor` may be: everything that is logged on the whole validation split."""
    n_way, loss = cfg.data.split.val_concepts, cfg.loss
    offered = [f"val/retrieval_top1_{n_way}way", f"val/retrieval_top5_{n_way}way", "val/contrastive"]
    offered += ["val/mse"] * (cfg.image_projection.name == "none")
    return offered + [f"val/{name}" for name in ("cosine", "text", "vae_latent") if getattr(loss, name) > 0]
