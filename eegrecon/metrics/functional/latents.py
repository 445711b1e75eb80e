"""How much of pictures' latents was predicted, against knowing nothing but their mean."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eegrecon.metrics.functional.identification import two_way_identification


def latent_scores(
    latents: Float[Tensor, ...], true: Float[Tensor, ...], mean: Float[Tensor, "c h w"]
) -> dict[str, float]:
    """Scores of predicted latents over a whole split, by name.

    Args:
        latents: (n, c, h, w) predicted, n at least 2, scaled as `true`.
        true: (n, c, h, w) of the pictures that were seen.
        mean: (c, h, w) of the training pictures: the best guess without EEG.

    Returns:
        - `latent_mse`, `latent_l1`: mean squared and absolute difference per latent value (perfect 0).
        - `latent_skill`: 1 - latent_mse / that of predicting `mean` for every picture (perfect 1, the mean 0).
        - `latent_correlation`: Pearson correlation over all values of a latent, of predicted and true deviation from
          `mean`, averaged over pictures (perfect 1, chance 0; 0 where a prediction is `mean` itself).
        - `latent_two_way`: two-way identification among all rows by these deviations (perfect 1, chance 0.5).
        - `latent_std_ratio`: standard deviation of predicted over that of true deviations (1: as much variance as
          latents have; below: regression to the mean).

    Raises:
        ValueError: Shapes differ, fewer than two rows, or the true latents all equal `mean`.
    """
    if latents.shape != true.shape or len(true) < 2:
        raise ValueError(
            f"latents must be two of one shape (n >= 2, c, h, w), got {tuple(latents.shape)} and {tuple(true.shape)}"
        )
    pred, seen = (values.double() - mean.to(values.device).double() for values in (latents, true))
    nothing = seen.square().mean()
    if not nothing > 0:
        raise ValueError("every true latent equals the mean, so there is nothing to predict")
    mse = (pred - seen).square().mean()
    pred, seen = pred.flatten(1), seen.flatten(1)
    scores = {
        "latent_mse": mse,
        "latent_l1": (pred - seen).abs().mean(),
        "latent_skill": 1 - mse / nothing,
        "latent_correlation": _row_correlation(pred, seen).mean(),
        "latent_two_way": two_way_identification(pred, seen).mean(),
        "latent_std_ratio": pred.square().mean().sqrt() / nothing.sqrt(),
    }
    return {name: float(value) for name, value in scores.items()}


def _row_correlation(first: Tensor, second: Tensor) -> Tensor:
    first, second = (values - values.mean(1, keepdim=True) for values in (first, second))
    norms = first.norm(dim=1) * second.norm(dim=1)
    flat = norms <= 1e-12
    return torch.where(flat, 0.0, (first * second).sum(1) / norms.masked_fill(flat, 1.0))
