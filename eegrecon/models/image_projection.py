"""Learned maps from a picture's embedding to the space it shares with the EEG.

`forward(image_embeds (b, target_dim)) -> (b, dim)`; `dim` is the size of the shared space, which the encoder gets.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def no_projection(target_dim: int) -> None:
    """The shared space is the target's own."""


class LinearProjection(nn.Linear):
    """One affine map (b, target_dim) -> (b, dim).

    Args:
        target_dim: size of the (fused) target.
        dim: size of the shared space; None: `target_dim`.
        bias: add a constant.
    """

    def __init__(self, target_dim: int, *, dim: int | None = None, bias: bool = True) -> None:
        self.dim = dim or target_dim
        super().__init__(target_dim, self.dim, bias=bias)


class MLPProjection(nn.Module):
    """Two layers with a GELU between: (b, target_dim) -> (b, dim).

    Args:
        target_dim: size of the (fused) target.
        dim: size of the shared space; None: `target_dim`.
        hidden: width of the hidden layer; None: `dim`.
        dropout: dropout after the hidden layer.
    """

    def __init__(
        self, target_dim: int, *, dim: int | None = None, hidden: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dim = dim or target_dim
        width = hidden or self.dim
        self.inward, self.outward = nn.Linear(target_dim, width), nn.Linear(width, self.dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image_embeds: Float[Tensor, "b target_dim"]) -> Float[Tensor, "b dim"]:
        """Image embeddings in the shared space (b, dim), not L2-normalised."""
        return self.outward(self.dropout(F.gelu(self.inward(image_embeds))))
