"""Regression losses: of the encoder, and of the low-level pathway."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def mse_embedding(
    eeg_embeds: Float[Tensor, "..."], image_embeds: Float[Tensor, "..."], *, reduce: bool = True
) -> Float[Tensor, "*b"]:
    """Mean squared difference per dimension; 0 at perfection.

    For targets of unit variance the prediction "mean of all targets" scores 1.

    Args:
        eeg_embeds: (b, dim).
        image_embeds: (b, dim), as the target store's reader gives them.
        reduce: mean over trials, scalar; else one number per trial, (b,).

    Raises:
        ValueError: the shapes differ (broadcasting would hide it).
    """
    return _mse(eeg_embeds, image_embeds, reduce)


def cosine_embedding(
    eeg_embeds: Float[Tensor, "..."], image_embeds: Float[Tensor, "..."], *, reduce: bool = True
) -> Float[Tensor, "*b"]:
    """One minus the cosine between embedding and target; 0 at perfection, 1 for unrelated directions.

    Args:
        eeg_embeds: (b, dim).
        image_embeds: (b, dim).
        reduce: mean over trials, scalar; else one number per trial, (b,).

    Raises:
        ValueError: the shapes differ.
    """
    eeg, image = _alike(eeg_embeds, image_embeds)
    per_trial = 1 - F.cosine_similarity(eeg.flatten(1), image.flatten(1))
    return per_trial.mean() if reduce else per_trial


def mse_latent(
    latents: Float[Tensor, "..."], target_latents: Float[Tensor, "..."], *, reduce: bool = True
) -> Float[Tensor, "*b"]:
    """Mean squared difference per latent value; 0 at perfection.

    Args:
        latents: (b, c, h, w).
        target_latents: (b, c, h, w), already times the VAE's scaling_factor.
        reduce: mean over trials, scalar; else one number per trial, (b,).

    Raises:
        ValueError: the shapes differ.
    """
    return _mse(latents, target_latents, reduce)


def l1_latent(
    latents: Float[Tensor, "..."], target_latents: Float[Tensor, "..."], *, reduce: bool = True
) -> Float[Tensor, "*b"]:
    """Mean absolute difference per latent value; 0 at perfection.

    Args:
        latents: (b, c, h, w).
        target_latents: (b, c, h, w), already times the VAE's scaling_factor.
        reduce: mean over trials, scalar; else one number per trial, (b,).

    Raises:
        ValueError: the shapes differ.
    """
    value, target = _alike(latents, target_latents)
    per_trial = (value - target).abs().flatten(1).mean(1)
    return per_trial.mean() if reduce else per_trial


def _mse(value: Tensor, target: Tensor, reduce: bool) -> Tensor:
    value, target = _alike(value, target)
    per_trial = (value - target).square().flatten(1).mean(1)
    return per_trial.mean() if reduce else per_trial


def _alike(value: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if value.shape != target.shape:
        raise ValueError(
            f"a regression loss needs two tensors of one shape, got {tuple(value.shape)} and {tuple(target.shape)}"
        )
    precise = torch.promote_types(target.dtype, torch.float32)  # never half precision, whatever autocast gave
    return value.to(precise), target.to(precise)
