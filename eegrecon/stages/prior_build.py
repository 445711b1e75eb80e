"""What `train-prior` trains and on what: from the config to data module, prior, module, trainer and closed form."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from eegrecon.callbacks.monitoring import TrainingMonitor
from eegrecon.callbacks.prior import PriorScores
from eegrecon.callbacks.resume import EpochSeed
from eegrecon.config import DENOISERS, OPTIMS, TrainPriorConfig, diff, to_dict
from eegrecon.data.image_only import image_only_rows
from eegrecon.data.images import ImageSet
from eegrecon.data.targets import TargetStore
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.loading import build_prior
from eegrecon.models.encoders.ridge import fit_ridge
from eegrecon.models.priors.linear import NoPrior, PriorRidge
from eegrecon.modules.prior import PriorModule
from eegrecon.modules.prior_objectives import DiffusionObjective, PriorObjective, RegressionObjective
from eegrecon.registry import check_args, lookup
from eegrecon.stages.data_module import data_module
from eegrecon.stages.prior_checks import CROSS_FITTED, RIDGE_MONITOR, STAGE, Upstream, image_only_dir
from eegrecon.stages.trainer import build_trainer as stage_trainer
from eegrecon.stages.trainer import checkpoints

# Facts of the data that the encoder was trained with and that this config must repeat.
SHARED_DATA = (
    "set", "subjects", "test_subjects", "channels", "window", "n_times", "sfreq", "unit", "repetitions", "sessions",
    "keep_repetitions", "images_sha256", "split",
)  # fmt: skip


def build_data(cfg: TrainPriorConfig, upstream: Upstream) -> ThingsDataModule:
    """The encoder's exported embeddings beside their pictures' own.

    Raises:
        ArtifactError: The encoder was trained with another data block; names every key.
    """
    data = data_module(
        "prior",
        cfg.data,
        {"image": cfg.target},
        seed=cfg.seed,
        loader=cfg.loader,
        upstream=upstream.directory,
        train_embeds=Path(CROSS_FITTED).stem if cfg.embeds == "cross_fitted" else "train",
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
    """Prior and scaling (measured on the training rows; `none` has none), wired for training and validation.

    Raises:
        ConfigError: A name, an argument or a number does not fit.
    """
    rows = columns(data, "train")
    optimizer = lookup(OPTIMS, cfg.optim.name)
    check_args(optimizer, cfg.optim, {"params": None})
    diffusion = cfg.diffusion
    try:
        prior = build_prior(to_dict(cfg), dim=rows["image_embeds"].shape[1], cond_dim=rows["eeg_embeds"].shape[1])
        prior.use_scheduler(cfg.sample.scheduler, cfg.sample.num_inference_steps)
        if not isinstance(prior.network, NoPrior):
            prior.fit(rows["image_embeds"], rows["eeg_embeds"], diffusion.target_scale, diffusion.cond_scale)
        return PriorModule(
            prior,
            build_objective(cfg, data),
            optimizer=partial(optimizer, **cfg.optim.args),
            ema_decay=diffusion.ema_decay,
            lr_schedule=cfg.lr_schedule.name,
            warmup_steps=cfg.lr_schedule.warmup_steps,
            guidance_scale=cfg.sample.guidance_scale,
            num_inference_steps=cfg.sample.num_inference_steps,
            seed=cfg.seed,
        )
    except ValueError as error:  # numbers that cannot work, each message already a sentence
        raise ConfigError(f"The {STAGE} config does not work: {error}") from error


def build_objective(cfg: TrainPriorConfig, data: ThingsDataModule) -> PriorObjective:
    """Denoising for a diffusion prior; for the others the regression that mlp is trained by and all are validated by.

    Raises:
        DataError: The store of `diffusion.image_only` is broken or has nothing to give.
        ValueError: On a number outside its range.
    """
    diffusion, others = cfg.diffusion, None
    if cfg.prior.name in DENOISERS:
        if diffusion.image_only:
            path = image_only_dir(cfg)
            pictures = ImageSet.from_root(path.parent.parent)
            store = TargetStore(path, pictures, l2_normalise=cfg.target.l2_normalise)
            others = torch.from_numpy(image_only_rows(store, pictures, data.images, data.split))
        return DiffusionObjective(diffusion.cond_drop, diffusion.cond_noise, others, diffusion.image_only_rate)
    return RegressionObjective(cfg.regression.mse, cfg.regression.cosine, cfg.diffusion.cond_noise)


def columns(data: ThingsDataModule, part: Any) -> dict[str, Tensor]:
    """All rows of a part: eeg_embeds (n, cond_dim), image_embeds (n, dim) and ids (n,)."""
    return data.dataset(part).columns


def without_training(module: PriorModule, data: ThingsDataModule) -> dict[str, Any] | None:
    """The manifest's `selection` of a prior that no gradient trains; ridge is fitted here. None: it must be trained.

    Ridge minimises the squared error between standardised embeddings; its penalty is the one whose predictions have the
    largest mean cosine to the pictures' own embeddings over the validation rows, both un-standardised.

    Raises:
        ConfigError: Ridge cannot be fitted to these rows.
    """
    prior: Any = module.prior
    if isinstance(prior.network, NoPrior):
        return {"closed_form": True, "rule": "nothing is trained", "ema": False}
    if not isinstance(prior.network, PriorRidge):
        return None
    train, val = columns(data, "train"), columns(data, "val")

    def score(pred: Tensor) -> float:
        return float(torch.cosine_similarity(prior.restore_target(pred), val["image_embeds"]).double().mean())

    try:
        fit = fit_ridge(
            prior.standardise_cond(train["eeg_embeds"]),
            prior.standardise_target(train["image_embeds"]),
            val_x=prior.standardise_cond(val["eeg_embeds"]),
            score=score,
            alphas=prior.network.alphas,
        )
    except ValueError as error:  # constant inputs
        raise ConfigError(f"The {STAGE} config does not work: {error}") from error
    prior.network.set_weights(fit.weight, fit.bias)
    scores = {str(alpha): value for alpha, value in fit.scores.items()}
    chosen = {"monitor": RIDGE_MONITOR, "mode": "max", "value": fit.scores[fit.alpha]}
    return {"closed_form": True, "alpha": fit.alpha, "scores": scores, **chosen, "ema": False}


def build_trainer(cfg: TrainPriorConfig, directory: Path, concept_index: Any) -> lightning.Trainer:
    """The trainer of the config's `trainer` block with this stage's callbacks."""
    every = cfg.trainer.get("check_val_every_n_epoch", 1)
    saves = checkpoints(directory, cfg.select.monitor, cfg.select.mode, every)
    callbacks = [EpochSeed(cfg.seed), TrainingMonitor(), PriorScores(torch.as_tensor(concept_index)), *saves]
    block = {"num_sanity_val_steps": 0, **cfg.trainer}
    # The data module shares rows out itself.
    return stage_trainer(STAGE, block, directory, callbacks, use_distributed_sampler=False)
