"""What a `train-prior` config may not ask for, and what the encoder before it must be; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eegrecon.artifacts import Manifest, input_record, read_manifest, require_interface
from eegrecon.config import DENOISERS, RegressionConfig, TrainPriorConfig
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.stages.training_checks import NEEDED_FLAGS, flag_problems

STAGE = "train-prior"
CROSS_FITTED = "embeds/train_cross_fitted.safetensors"  # of an encoder trained with cross_fit
SAW_VALIDATION = "saw_validation"  # in an encoder's selection: it was trained on the validation concepts (import-atm)
RIDGE_MONITOR = "val/prior_cosine"
OWN_FLAGS: dict[str, tuple[Any, ...]] = {"callbacks": (None,), "logger": (True, None)}


@dataclass(frozen=True)
class Upstream:
    """The finished encoder and the target store, checked against each other."""

    directory: Path
    manifest: Manifest
    interface: dict[str, Any]
    inputs: dict[str, dict[str, str]]


def check_config(cfg: TrainPriorConfig) -> None:
    """Refuse, before anything is read or written, what would fail or be ignored later.

    Raises:
        ConfigError: Lists every problem.
    """
    n_way, problems = cfg.data.split.val_concepts, []
    if n_way < 2:
        problems.append(f"data.split.val_concepts is {n_way}, but an epoch is selected on at least 2 concepts")
    modes = {"prior_loss": "min", "prior_cosine": "max", f"prior_retrieval_top1_{n_way}way": "max"}
    mode = modes.get(cfg.select.monitor.removeprefix("val/"))
    if mode is None or not cfg.select.monitor.startswith("val/"):
        offered = ", ".join(f"val/{name}" for name in modes)
        problems.append(f"select.monitor is {cfg.select.monitor!r}, expected one of {offered}")
    elif cfg.select.mode != mode:
        problems.append(f"select.mode is {cfg.select.mode!r}, which would select the worst {cfg.select.monitor}")
    problems += flag_problems(STAGE, cfg.trainer, NEEDED_FLAGS | OWN_FLAGS)
    every, epochs = cfg.trainer.get("check_val_every_n_epoch", 1), cfg.trainer.get("max_epochs")
    if not isinstance(every, int) or not isinstance(epochs, int) or not 1 <= every <= epochs:
        problems.append(
            f"trainer.max_epochs is {epochs!r} and trainer.check_val_every_n_epoch {every!r}, but at least one "
            "epoch must be validated"
        )
    precision = str(cfg.trainer.get("precision", "32-true"))
    if precision not in ("32", "32-true") and not precision.endswith("mixed"):
        problems.append(f"trainer.precision is {precision!r}, but a prior keeps float32 weights: 32-true or bf16-mixed")
    problems += _prior_problems(cfg)
    if problems:
        raise ConfigError("This config cannot be trained: " + "; ".join(problems) + ".")


def _prior_problems(cfg: TrainPriorConfig) -> list[str]:
    """What is asked of a prior that has no such thing; blocks that only describe another one are not read."""
    name, problems = cfg.prior.name, []
    if name in DENOISERS:
        if cfg.regression != RegressionConfig():
            problems.append(f"regression is set, but the prior {name} is trained by diffusion and not by regression")
        if cfg.diffusion.image_only and not cfg.diffusion.image_only_rate:
            problems.append("diffusion.image_only names a store, but diffusion.image_only_rate is 0")
        return problems
    if cfg.diffusion.image_only:
        problems.append(f"diffusion.image_only is set, but the prior {name} has no unconditional half")
    if name == "mlp":
        if cfg.regression.mse == cfg.regression.cosine == 0:
            problems.append("regression.mse and regression.cosine are both 0, so nothing would be learned")
        return problems
    asked = {"diffusion.cond_noise": cfg.diffusion.cond_noise, "diffusion.ema_decay": cfg.diffusion.ema_decay}
    asked["regression.cosine"] = cfg.regression.cosine
    why = "is a closed form without it" if name == "ridge" else "is no network that is trained"
    problems += [f"{key} is {value}, but the prior {name} {why}" for key, value in asked.items() if value]
    if name == "ridge" and cfg.select.monitor != RIDGE_MONITOR:
        problems.append(
            f"select.monitor is {cfg.select.monitor!r}, but the prior ridge chooses its penalty by {RIDGE_MONITOR}"
        )
    return problems


def check_upstream(cfg: TrainPriorConfig, encoder_dir: Path) -> Upstream:
    """Read the encoder's manifest and refuse it if its target space is not the one the config names.

    Imports no torch.

    Raises:
        ArtifactError: The encoder is unfinished, tampered with, or of another target space.
        DataError: The target store is missing or broken.
    """
    from eegrecon.data.layout import target_dir
    from eegrecon.data.targets import TargetStore

    fix = "`eegrecon train-encoder`"
    manifest = read_manifest(encoder_dir, fix=fix)
    targets = target_dir(Path(cfg.data.root) / cfg.data.set, cfg.target.name)
    store = TargetStore(targets, l2_normalise=cfg.target.l2_normalise)
    interface = store.interface()
    require_interface(
        manifest,
        interface,
        manifest_path=encoder_dir / "manifest.json",
        wanted_by=f"target.name={cfg.target.name} target.l2_normalise={str(cfg.target.l2_normalise).lower()} "
        f"({targets / 'header.json'})",
        fix=f"{fix} with this target in another run directory (RUN=…, --run …), or name the encoder's target here",
    )
    if "projection" in manifest.interface:
        raise ArtifactError(
            f"{encoder_dir} was trained with image_projection={manifest.interface['projection']}, so its "
            f"embeddings lie in a learned space and not in that of {cfg.target.name!r}: train an encoder without one."
        )
    if cfg.embeds == "cross_fitted" and CROSS_FITTED not in manifest.outputs:
        raise ArtifactError(
            f"embeds is 'cross_fitted', but {encoder_dir} has no {CROSS_FITTED}: train the encoder with cross_fit=5 in "
            "another run directory (RUN=…, --run …), or set embeds to in_sample."
        )
    inputs = {"encoder": input_record(encoder_dir)}
    if (targets / "manifest.json").is_file():
        inputs["targets"] = input_record(targets)
    if cfg.diffusion.image_only:
        inputs |= _image_only_input(cfg, interface, targets)
    return Upstream(encoder_dir, manifest, interface, inputs)


def image_only_dir(cfg: TrainPriorConfig) -> Path:
    """The store that `diffusion.image_only` names, NAME or SET/NAME."""
    from eegrecon.data.layout import target_dir

    set_name, _, name = cfg.diffusion.image_only.rpartition("/")
    return target_dir(Path(cfg.data.root) / (set_name or cfg.data.set), name)


def _image_only_input(cfg: TrainPriorConfig, interface: dict[str, Any], targets: Path) -> dict[str, dict[str, str]]:
    """Lineage entry of the store of `diffusion.image_only`, which must hold embeddings of the target's space."""
    from eegrecon.data.targets import TargetStore

    path = image_only_dir(cfg)
    other = TargetStore(path, l2_normalise=cfg.target.l2_normalise).interface()
    keys = [key for key in {**interface, **other} if key != "name" and other.get(key) != interface.get(key)]
    if keys:
        wrong = "; ".join(f"{key} is {other.get(key)!r} there and {interface.get(key)!r} here" for key in keys)
        raise ArtifactError(
            f"diffusion.image_only {path} holds other embeddings than the target {targets}: {wrong}; name a store that "
            "was made in the same way."
        )
    return {"image_only": input_record(path)} if (path / "manifest.json").is_file() else {}
