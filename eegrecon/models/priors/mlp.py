"""The prior as plain regression: from the EEG embedding to the one image embedding that fits it best on average."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class PriorMLP(nn.Module):
    """eeg_embeds (b, cond_dim) -> image_embeds (b, dim), both standardised (`diffusion.scaled.PointPrior`).

    A block is Linear + LayerNorm + SiLU + Dropout, as in `PriorUNet`; one Linear behind. Without hidden layers it is
    linear regression by gradient descent.

    Args:
        dim: Size of the image embedding.
        cond_dim: Size of the EEG embedding.
        hidden: Widths of the hidden layers.
        dropout: Dropout probability in each block, in [0, 1).

    Raises:
        ValueError: On sizes that cannot be built.
    """

    def __init__(self, dim: int, cond_dim: int, hidden: Sequence[int] = (1024, 1024), dropout: float = 0.1) -> None:
        super().__init__()
        widths = [int(cond_dim), *(int(width) for width in hidden)]
        if min(widths) < 1:
            raise ValueError(f"PriorMLP needs positive widths in hidden, got {widths[1:]}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"PriorMLP needs a dropout in [0, 1), got {dropout}.")
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU(), nn.Dropout(dropout))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.output = nn.Linear(widths[-1], int(dim))

    def forward(self, eeg_embeds: Float[Tensor, "b cond_dim"]) -> Float[Tensor, "b dim"]:
        """The predicted embedding."""
        return self.output(self.blocks(eeg_embeds))
