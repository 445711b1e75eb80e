"""The loss of the low-level pathway as one value: which differences between latents, with which weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eegrecon.losses.regression import l1_latent, mse_latent


@dataclass(frozen=True)
class LatentObjective:
    """`l1·mean|difference| + mse·mean difference² + image·mean (picture difference)²`.

    The first two are between latents times the VAE's scaling_factor, the third between the pictures, about [0, 1], that
    the VAE decodes from them. ATM's paper writes MSE, its code takes L1 (facts/atm.md section 11).

    Attributes:
        l1: Weight of the mean absolute difference.
        mse: Weight of the mean squared difference.
        image: Weight of the mean squared difference of decoded pictures.

    Raises:
        ValueError: A weight is negative, or all are 0.
    """

    l1: float
    mse: float
    image: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.l1, self.mse, self.image)
        if min(weights) < 0 or not any(weights):
            raise ValueError(f"l1, mse and image are weights of at least 0, one of them above 0, got {weights}")

    def terms(
        self, latents: Tensor, target_latents: Tensor, decode: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The terms, unweighted, one number per trial: {l1, mse[, image]}, each (b,).

        Args:
            latents: (b, c, h, w), scaled.
            target_latents: Likewise.
            decode: Scaled latents to pictures, with gradient; None: no image term.
        """
        found = {
            "l1": l1_latent(latents, target_latents, reduce=False),
            "mse": mse_latent(latents, target_latents, reduce=False),
        }
        if decode is not None:
            with torch.no_grad():
                seen = decode(target_latents)
            found["image"] = mse_latent(decode(latents), seen, reduce=False)
        return found

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of scalar terms."""
        return torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()
