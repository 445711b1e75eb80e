"""The two baselines that nothing trains: ridge in closed form, and no prior at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eegrecon.models.encoders.ridge import ALPHAS


class PriorRidge(nn.Module):
    """A linear map: eeg_embeds (b, cond_dim) -> image_embeds (b, dim), both standardised.

    Args:
        dim: Size of the image embedding.
        cond_dim: Size of the EEG embedding.
        alphas: The penalties to choose from, relative as in `models.encoders.ridge.fit_ridge`, which fits it.

    Raises:
        ValueError: No penalty, or one that is not positive.
    """

    def __init__(self, dim: int, cond_dim: int, alphas: Sequence[float] = ALPHAS) -> None:
        super().__init__()
        if not alphas or min(alphas) <= 0:
            raise ValueError(f"the prior ridge needs positive alphas, got {list(alphas)}")
        self.alphas = tuple(alphas)
        self.linear = nn.Linear(cond_dim, dim)

    def forward(self, eeg_embeds: Float[Tensor, "b cond_dim"]) -> Float[Tensor, "b dim"]:
        """The predicted embedding."""
        return self.linear(eeg_embeds)

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: Tensor) -> None:
        """Takes the result of `fit_ridge`: weight (dim, cond_dim), bias (dim,)."""
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)


class NoPrior(nn.Module):
    """The EEG embedding itself, as the image embedding.

    Args:
        dim: Size of the image embedding.
        cond_dim: Size of the EEG embedding.

    Raises:
        ValueError: The sizes differ.
    """

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        if dim != cond_dim:
            raise ValueError(
                f"the prior none passes EEG embeddings of {cond_dim} numbers on as image embeddings of {dim}, which is "
                "only possible where both have one size; choose mlp or ridge"
            )

    def forward(self, eeg_embeds: Float[Tensor, "b dim"]) -> Float[Tensor, "b dim"]:
        """The same embedding."""
        return eeg_embeds
