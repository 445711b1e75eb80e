"""From a stage directory to the ready network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eegrecon.artifacts import read_manifest
from eegrecon.config import (
    DENOISERS,
    ENCODERS,
    IMAGE_PROJECTIONS,
    LATENT_HEADS,
    LOW_LEVEL,
    PRIORS,
    Choice,
    parse_yaml,
)
from eegrecon.diffusion.objectives import build_scheduler
from eegrecon.diffusion.scaled import PointPrior, ScaledPrior
from eegrecon.errors import ArtifactError
from eegrecon.manifest import Manifest
from eegrecon.models.captioners.projector import PixelProjector
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.models.low_level.wrapper import LowLevelDecoder
from eegrecon.registry import resolve

# Keys of `diffusion` that `build_scheduler` takes.
SCHEDULE = ("prediction_type", "num_train_timesteps", "beta_schedule", "clip_sample")


@dataclass(frozen=True)
class LoadedStage:
    """A stage's network, rebuilt (eval mode, float32), with its manifest and resolved config.

    `network` is an `AlignedEncoder` (which holds the latent head, if any), a prior (`ScaledPrior`, `PointPrior`), a
    `LowLevelDecoder` or a `PixelProjector`.
    """

    network: nn.Module
    manifest: Manifest
    config: dict[str, Any]


def load(stage_dir: str | Path, device: str = "cpu") -> nn.Module:
    """The ready network of a finished stage: eval mode, float32, on `device`.

    Args:
        stage_dir: A directory that `train-encoder`, `train-prior` or `train-low-level` has finished.
        device: A torch device.

    Returns:
        The `AlignedEncoder` (`forward(eeg (b, n_chans, n_times) in the trial store's unit, subject (b,)) -> (b, dim)`),
        the prior, whichever `prior.name` it is
        (`sample(eeg_embeds (b, dim), generators=…, guidance_scale=…, num_inference_steps=…)`), or the `LowLevelDecoder`
        (`forward(eeg, subject) -> (b, c, h, w)`, latents times the VAE's scaling_factor).

    Raises:
        ArtifactError: The directory is unfinished, was tampered with, or does not hold the network its config names.
    """
    return load_stage(stage_dir, device).network


def load_stage(stage_dir: str | Path, device: str = "cpu") -> LoadedStage:
    """Everything in a stage's `model.safetensors`; see `LoadedStage` and `load`."""
    directory = Path(stage_dir)
    manifest = read_manifest(directory)
    config = parse_yaml((directory / "config.yaml").read_text(encoding="utf-8"))
    path = directory / "model.safetensors"
    if not path.is_file():
        raise ArtifactError(
            f"{directory} ({manifest.stage}) holds no network: load that of train-encoder, train-prior or "
            "train-low-level."
        )
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"The weights {path} cannot be read ({error}): make them again with --overwrite."
        ) from error
    network = _build(manifest, config, state)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        listing = " ".join(str(error).split())
        raise ArtifactError(
            f"The weights {path} do not fit the network that {directory / 'config.yaml'} names: {listing}."
        ) from error
    return LoadedStage(network.eval().float().to(device), manifest, config)


def _build(manifest: Manifest, config: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    if manifest.stage == "train-low-level":
        return _build_low_level(manifest, config, state)
    dim: int = _fact(manifest, "interface", "dim")
    if manifest.stage == "train-encoder":
        n_chans, n_times = len(_fact(manifest, "data", "channels")), _fact(manifest, "data", "n_times")
        projection = None
        if any(key.startswith("image_projection.") for key in state):
            projection = resolve(IMAGE_PROJECTIONS, Choice(**config["image_projection"]), target_dim=dim)
            dim = projection.dim
        encoder = resolve(ENCODERS, Choice(**config["encoder"]), n_chans=n_chans, n_times=n_times, dim=dim)
        head = None
        if any(key.startswith("latent_head.") for key in state):
            shape = tuple(_fact(manifest, "interface", "latent_shape"))
            head = resolve(LATENT_HEADS, Choice(**config["latent_head"]), dim=dim, latent_shape=shape)
        known = state.get("known_subjects")
        return AlignedEncoder(
            encoder,
            head,
            torch.zeros(n_chans),
            torch.ones(n_chans),
            image_projection=projection,
            known_subjects=None if known is None else known.tolist(),
            logit_bias=0.0 if "logit_bias" in state else None,
        )
    if manifest.stage == "train-prior":
        return build_prior(config, dim=dim, cond_dim=dim)
    if manifest.stage == "train-projector":
        captioner = _fact(manifest, "interface", "captioner")
        return PixelProjector(dim, captioner["n_tokens"], captioner["width"])
    raise ArtifactError(f"A {manifest.stage} directory holds no network to load.")


def _build_low_level(manifest: Manifest, config: dict[str, Any], state: dict[str, Tensor]) -> LowLevelDecoder:
    n_chans, n_times = len(_fact(manifest, "data", "channels")), _fact(manifest, "data", "n_times")
    shape = tuple(_fact(manifest, "interface", "shape"))
    facts = {"n_chans": n_chans, "n_times": n_times, "latent_shape": shape}
    return LowLevelDecoder(
        resolve(LOW_LEVEL, Choice(**config["network"]), **facts),
        torch.zeros(n_chans),
        torch.ones(n_chans),
        torch.zeros(shape),
        torch.ones(shape[0], 1, 1),
        known_subjects=state["known_subjects"].tolist() if "known_subjects" in state else [],
        standardise=config["target_scale"] == "std",
    )


def build_prior(config: Mapping[str, Any], *, dim: int, cond_dim: int) -> ScaledPrior | PointPrior:
    """The prior that a `train-prior` config names, untrained and unscaled; it samples as `sample.scheduler` says.

    Args:
        config: The whole config as plain values; keys of `diffusion` and `sample` that an older one lacks take their
            defaults.
        dim: Size of the image embedding.
        cond_dim: Size of the EEG embedding.

    Raises:
        ConfigError: A name or an argument does not fit.
        ValueError: The noise schedule cannot work.
    """
    choice = Choice(**config["prior"])
    network = resolve(PRIORS, choice, dim=dim, cond_dim=cond_dim)
    if choice.name not in DENOISERS:
        return PointPrior(network, dim=dim, cond_dim=cond_dim)
    options = {name: value for name, value in config["diffusion"].items() if name in SCHEDULE}
    prior = ScaledPrior(network, build_scheduler(**options), dim=dim, cond_dim=cond_dim)
    if "scheduler" in config["sample"]:
        prior.use_scheduler(Choice(**config["sample"]["scheduler"]))
    return prior


def _fact(manifest: Manifest, group: str, name: str) -> Any:
    values = getattr(manifest, group)
    if name not in values:
        raise ArtifactError(
            f"The manifest of {manifest.stage} lacks {group}.{name}, without which its network cannot be rebuilt: "
            "make it again with --overwrite."
        )
    return values[name]
