"""`train-prior`: stage 2, a diffusion prior from EEG embeddings to image embeddings.

Everything about the inputs is checked before torch is imported, and every argument before anything is written.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import (
    Manifest,
    atomic_write,
    input_record,
    open_stage,
    read_manifest,
    require_interface,
    save_embeds,
    write_json,
    write_manifest,
)
from eegrecon.config import OPTIMS, PRIORS, TrainPriorConfig, config_hash, diff, to_yaml
from eegrecon.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import lightning
    from torch import Tensor

    from eegrecon.datamodule import ThingsDataModule
    from eegrecon.modules.prior import PriorModule

STAGE = "train-prior"
WEIGHTS, METRICS, EMBEDS = "model.safetensors", "metrics.json", "embeds/val.safetensors"
# Trainer flags that would leave no epoch to publish, or one chosen on something else than the whole validation split.
NEEDED_FLAGS: dict[str, tuple[Any, ...]] = {
    "fast_dev_run": (False, 0),
    "enable_checkpointing": (True, None),
    "limit_val_batches": (1.0, None),
    "val_check_interval": (1.0, None),
    "use_distributed_sampler": (False,),
    "callbacks": (None,),
    "logger": (True, None),
}
# Facts of the data that the encoder was trained with and that this config must repeat.
SHARED_DATA = (
    "set", "subjects", "test_subjects", "channels", "window", "n_times", "sfreq", "unit", "repetitions", "sessions",
    "keep_repetitions", "images_sha256", "split",
)  # fmt: skip


def run(cfg: TrainPriorConfig, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Train the prior on the encoder's training embeddings; select and score it on held-out concepts.

    Writes `model.safetensors` (a `diffusion.scaled.ScaledPrior`: network, target and condition scaling),
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

    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg, upstream)
    module = build_module(cfg, data)
    trainer = build_trainer(cfg, directory, data.images.concept_index)
    state = open_stage(*claim, overwrite)
    last = directory / "checkpoints" / "last.ckpt"
    with warnings.catch_warnings():
        # A resumed run's checkpoints are there on purpose.
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        trainer.fit(module, datamodule=data, ckpt_path=str(last) if state == "resume" else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.strategy.barrier()
    from eegrecon.stages.trainer import trained_manifest  # imports torch: after the checks

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
    manifest.selection = select(cfg, trainer, module)
    scores = write_results(cfg, directory, module, data, manifest.selection)
    manifest.outputs = {name: {} for name in (WEIGHTS, METRICS, EMBEDS)}
    manifest.metrics = scores
    manifest.wall_seconds = time.monotonic() - started
    return write_manifest(directory, manifest)


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
    for name, allowed in NEEDED_FLAGS.items():
        if name in cfg.trainer and cfg.trainer[name] not in allowed:
            problems.append(f"trainer.{name} is {cfg.trainer[name]!r}, but {STAGE} needs {allowed[0]!r}")
    every, epochs = cfg.trainer.get("check_val_every_n_epoch", 1), cfg.trainer.get("max_epochs")
    if not isinstance(every, int) or not isinstance(epochs, int) or not 1 <= every <= epochs:
        problems.append(
            f"trainer.max_epochs is {epochs!r} and trainer.check_val_every_n_epoch {every!r}, but at least one "
            "epoch must be validated"
        )
    if problems:
        raise ConfigError("This config cannot be trained: " + "; ".join(problems) + ".")


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
    inputs = {"encoder": input_record(encoder_dir)}
    if (targets / "manifest.json").is_file():
        inputs["targets"] = input_record(targets)
    return Upstream(encoder_dir, manifest, interface, inputs)


def build_data(cfg: TrainPriorConfig, upstream: Upstream) -> ThingsDataModule:
    """The encoder's exported embeddings beside their pictures' own.

    Raises:
        ArtifactError: The encoder was trained with another data block; names every key.
    """
    from eegrecon.stages.data_module import data_module  # imports torch: after the checks

    data = data_module(
        "prior", cfg.data, {"image": cfg.target}, seed=cfg.seed, loader=cfg.loader, upstream=upstream.directory
    )
    there, here = upstream.manifest.data, data.describe()
    names = [name for name in SHARED_DATA if name in there]
    different = diff({name: there[name] for name in names}, {name: here[name] for name in names})
    if different:
        keys = ", ".join(f"data.{name}" for name in different)
        raise ArtifactError(
            f"{upstream.directory / 'manifest.json'} (train-encoder) and this config differ in {keys}: give both "
            "stages the same data block, or train the encoder anew in another run directory (RUN=…, --run …)."
        )
    return data


def build_module(cfg: TrainPriorConfig, data: ThingsDataModule) -> PriorModule:
    """Network, schedule and scaling (measured on the training rows), wired for training.

    Raises:
        ConfigError: A name, an argument or a number does not fit.
    """
    from eegrecon.diffusion.objectives import build_scheduler
    from eegrecon.diffusion.scaled import ScaledPrior
    from eegrecon.modules.prior import PriorModule
    from eegrecon.registry import check_args, lookup, resolve

    rows = data.dataset("train").columns
    dim, cond_dim = rows["image_embeds"].shape[1], rows["eeg_embeds"].shape[1]
    optimizer = lookup(OPTIMS, cfg.optim.name)
    check_args(optimizer, cfg.optim, {"params": None})
    diffusion = cfg.diffusion
    try:
        scheduler = build_scheduler(
            prediction_type=diffusion.prediction_type,
            num_train_timesteps=diffusion.num_train_timesteps,
            beta_schedule=diffusion.beta_schedule,
        )
        prior = ScaledPrior(
            resolve(PRIORS, cfg.prior, dim=dim, cond_dim=cond_dim), scheduler, dim=dim, cond_dim=cond_dim
        )
        prior.fit(rows["image_embeds"], rows["eeg_embeds"], diffusion.target_scale, diffusion.cond_scale)
        return PriorModule(
            prior,
            optimizer=partial(optimizer, **cfg.optim.args),
            cond_drop=diffusion.cond_drop,
            cond_noise=diffusion.cond_noise,
            ema_decay=diffusion.ema_decay,
            lr_schedule=cfg.lr_schedule.name,
            warmup_steps=cfg.lr_schedule.warmup_steps,
            guidance_scale=cfg.sample.guidance_scale,
            num_inference_steps=cfg.sample.num_inference_steps,
            seed=cfg.seed,
        )
    except ValueError as error:  # numbers that cannot work, each message already a sentence
        raise ConfigError(f"The {STAGE} config does not work: {error}") from error


def build_trainer(cfg: TrainPriorConfig, directory: Path, concept_index: Any) -> lightning.Trainer:
    """The trainer of the config's `trainer` block with this stage's callbacks."""
    import torch

    from eegrecon.callbacks.monitoring import TrainingMonitor
    from eegrecon.callbacks.prior import PriorScores
    from eegrecon.callbacks.resume import EpochSeed
    from eegrecon.stages.trainer import build_trainer as stage_trainer
    from eegrecon.stages.trainer import checkpoints

    every = cfg.trainer.get("check_val_every_n_epoch", 1)
    saves = checkpoints(directory, cfg.select.monitor, cfg.select.mode, every)
    callbacks = [EpochSeed(cfg.seed), TrainingMonitor(), PriorScores(torch.as_tensor(concept_index)), *saves]
    block = {"num_sanity_val_steps": 0, **cfg.trainer}
    # The data module shares rows out itself.
    return stage_trainer(STAGE, block, directory, callbacks, use_distributed_sampler=False)


def select(cfg: TrainPriorConfig, trainer: lightning.Trainer, module: PriorModule) -> dict[str, Any]:
    """Load the selected checkpoint's weights into the module; returns what the manifest says of it."""
    import torch

    checkpoint: Any = trainer.checkpoint_callback
    state = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)
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
        "guidance_scale": cfg.sample.guidance_scale,
        "num_inference_steps": cfg.sample.num_inference_steps,
        "shuffled": "the true embedding of the picture half the validation split away",
        "retrieval": "cosine, galleries of one picture a held-out concept",
        "seed": cfg.seed,
    }
    entries = {name: {"value": value} for name, value in scores.items()}
    write_json(directory / METRICS, {"schema": 1, "protocol": protocol, "metrics": entries})
    return scores
