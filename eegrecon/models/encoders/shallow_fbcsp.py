"""ShallowFBCSPNet: band power by convolutions.

Schirrmeister et al. 2017 (Human Brain Mapping 38:5391), section 2.4.3: temporal and spatial convolution, squaring, mean
pooling, logarithm. Its log-softmax is left out: the output is an embedding, not class probabilities.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.combined_conv import CombinedConv


class ShallowFBCSPNet(nn.Module):
    """ShallowFBCSPNet: eeg (b, n_chans, n_times), subject (b,) int (not used) -> eeg_embeds (b, dim).

    Args:
        n_chans: channels.
        n_times: samples of a trial, at least kernel + pool - 1.
        dim: size of the target embedding.
        filters: temporal and spatial filters (40).
        kernel: taps in time (25).
        pool: samples of the mean pooling (75).
        stride: its stride (15).
        dropout: dropout before the last layer (0.5).

    Raises:
        ConfigError: trials are too short.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        dim: int,
        *,
        filters: int = 40,
        kernel: int = 25,
        pool: int = 75,
        stride: int = 15,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if n_times < kernel + pool - 1:
            raise ConfigError(
                f"Encoder shallow_fbcsp needs trials of at least {kernel + pool - 1} samples (kernel {kernel} and "
                f"pooling {pool}), got {n_times}: widen data.window or set encoder.args.pool."
            )
        self.pool, self.stride = pool, stride
        self.conv = CombinedConv(n_chans, filters, kernel, spatial_bias=False)
        self.norm = nn.BatchNorm1d(filters)
        self.dropout = nn.Dropout(dropout)
        n_out = (n_times - kernel + 1 - pool) // stride + 1
        self.head = nn.Linear(filters * n_out, dim)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        power = F.avg_pool1d(self.norm(self.conv(eeg)).square(), self.pool, self.stride)
        return self.head(self.dropout(torch.log(power.clamp(min=1e-6)).flatten(1)))
