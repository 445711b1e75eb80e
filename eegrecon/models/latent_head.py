"""From an EEG embedding to the latent of an image autoencoder (the low-level pathway's auxiliary target)."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class LatentHead(nn.Module):
    """Two-layer network: eeg_embeds (b, dim) -> latents (b, *latent_shape), in the target store's scale.

    ATM's low-level pathway (Li et al. 2024, section 3.4) regresses VAE latents from EEG; here the regression also
    shapes the shared embedding, as a third loss term.

    Args:
        dim: size of the embedding.
        latent_shape: shape of one latent, such as (4, 16, 16).
        hidden: width of the hidden layer.
        dropout: dropout after the hidden layer.
    """

    def __init__(self, dim: int, latent_shape: Sequence[int], *, hidden: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        self.inward = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.outward = nn.Linear(hidden, math.prod(self.latent_shape))

    def forward(self, eeg_embeds: Float[Tensor, "b dim"]) -> Float[Tensor, "b ..."]:
        """Latents (b, *latent_shape)."""
        y = self.outward(self.dropout(F.gelu(self.inward(eeg_embeds))))
        return y.view(-1, *self.latent_shape)
