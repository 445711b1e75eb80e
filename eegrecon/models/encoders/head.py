"""The projection that ATM, NICE and EEGProject share."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualHead(nn.Module):
    """Linear to `dim`, a residual [GELU, Linear, dropout], LayerNorm: (b, n_features) -> (b, dim)."""

    def __init__(self, n_features: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.inward, self.residual = nn.Linear(n_features, dim), nn.Linear(dim, dim)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b n_features"]) -> Float[Tensor, "b dim"]:
        """The embedding; LayerNorm leaves a norm of about sqrt(dim), not 1."""
        x = self.inward(x)
        return self.norm(x + self.dropout(self.residual(F.gelu(x))))
