"""NICE: temporal-spatial convolution and a projection, with attention over channels as an option.

Song et al., "Decoding Natural Images from EEG for Object Recognition", ICLR 2024 (arXiv 2308.13234): the TSConv encoder
(its Figure 2) and the two spatial modules before it, self-attention (NICE-SA) and graph attention (NICE-GA). Both look
at a trial as a set of channels, each with its time course as features, and are added to it as a residual.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.head import ResidualHead
from eegrecon.models.encoders.temporal_spatial import TSConv

_SPATIAL = ("none", "sa", "ga")


class ChannelAttention(nn.Module):
    """One head of scaled dot-product self-attention over channels: (b, n_chans, n_times) -> the same shape."""

    def __init__(self, n_times: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_times)
        self.query, self.key, self.value = (nn.Linear(n_times, n_times) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """What every channel takes from all channels."""
        x = self.norm(x)
        return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


class ChannelGraphAttention(nn.Module):
    """One head of graph attention on the complete graph of channels (Velickovic et al. 2018, equations 1 to 4).

    A pair's weight is softmax over j of LeakyReLU(a·[W x_i, W x_j]), which needs two numbers a channel.
    """

    def __init__(self, n_times: int) -> None:
        super().__init__()
        self.weight = nn.Linear(n_times, n_times, bias=False)
        self.receiver = nn.Parameter(torch.empty(n_times))
        self.sender = nn.Parameter(torch.empty(n_times))
        self.bias = nn.Parameter(torch.zeros(n_times))
        nn.init.xavier_uniform_(self.weight.weight)
        bound = math.sqrt(6 / (2 * n_times + 1))  # Xavier for the pair's scoring vector of 2 n_times to 1
        nn.init.uniform_(self.receiver, -bound, bound)
        nn.init.uniform_(self.sender, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """What every channel takes from all channels, itself included."""
        y = self.weight(x)
        pairs = (y @ self.receiver)[:, :, None] + (y @ self.sender)[:, None, :]
        return F.leaky_relu(pairs, 0.2).softmax(dim=2) @ y + self.bias


class NICE(nn.Module):
    """NICE: eeg (b, n_chans, n_times), subject (b,) int (not used) -> eeg_embeds (b, dim).

    Args:
        n_chans: channels.
        n_times: samples of a trial (250 in the paper); any number from 75 on.
        dim: size of the target embedding.
        spatial: "none", "sa" (self-attention over channels) or "ga" (graph attention).
        spatial_dropout: dropout of what the spatial module adds.
        conv_dropout: dropout after the spatial convolution.
        head_dropout: dropout in the projection.

    Raises:
        ConfigError: `spatial` has no such choice, or trials are too short.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        dim: int,
        *,
        spatial: str = "none",
        spatial_dropout: float = 0.3,
        conv_dropout: float = 0.5,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if spatial not in _SPATIAL:
            raise ConfigError(
                f"encoder.args.spatial must be one of {', '.join(_SPATIAL)}, got {spatial!r} (encoder nice)."
            )
        modules = {"sa": ChannelAttention, "ga": ChannelGraphAttention}
        self.spatial = modules[spatial](n_times) if spatial in modules else None
        self.dropout = nn.Dropout(spatial_dropout)
        self.conv = TSConv(n_chans, n_times, dropout=conv_dropout, encoder="nice")
        self.head = ResidualHead(self.conv.n_features, dim, head_dropout)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        if self.spatial is not None:
            eeg = eeg + self.dropout(self.spatial(eeg))
        return self.head(self.conv(eeg))
