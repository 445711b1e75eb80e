"""From one image embedding to the visual tokens a captioner reads."""

from __future__ import annotations

import torch
from torch import nn


class PixelProjector(nn.Module):
    """A linear map over tokens, then one over width, each followed by a layer norm.

    EEG_Image_decode's `Generation/image_adapter.ipynb` (@90b2a3a, class PixelProjector): the norm of the first map runs
    over the tokens of one width (257 values), not over the width; there a token would lose all but its sign.
    Deviation: the width may change on the way (1024 to 1024 there).

    Attributes:
        dim: Width of the image embedding.
        n_tokens: Tokens to make.
        width: Their width.
    """

    def __init__(self, dim: int, n_tokens: int, width: int) -> None:
        super().__init__()
        self.dim, self.n_tokens, self.width = dim, n_tokens, width
        self.over_tokens, self.token_norm = nn.Linear(1, n_tokens), nn.LayerNorm(n_tokens)
        self.over_width, self.width_norm = nn.Linear(dim, width), nn.LayerNorm(width)

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Return visual tokens (b, n_tokens, width) of image embeddings (b, dim), as their store holds them.

        Raises:
            ValueError: Shapes do not fit.
        """
        if image_embeds.ndim != 2 or image_embeds.shape[1] != self.dim:
            raise ValueError(f"image_embeds must be (b, {self.dim}), got {tuple(image_embeds.shape)}")
        tokens = self.token_norm(self.over_tokens(image_embeds[:, :, None]))  # (b, dim, n_tokens)
        return self.width_norm(self.over_width(tokens.transpose(1, 2)))
