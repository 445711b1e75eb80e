"""A temporal and a spatial convolution with nothing in between, computed as one.

ShallowFBCSPNet and EEGConformer convolve every channel in time and then across all channels, both linear. Their product
is one convolution with n_chans inputs, which needs a third of the operations and is equal up to rounding. The
parameters stay those of the two convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CombinedConv(nn.Module):
    """(b, n_chans, n_times) -> (b, filters, n_times - kernel + 1).

    Args:
        n_chans: channels.
        filters: temporal filters, and spatial ones.
        kernel: taps in time.
        spatial_bias: whether the spatial convolution has a bias.
    """

    def __init__(self, n_chans: int, filters: int, kernel: int, *, spatial_bias: bool) -> None:
        super().__init__()
        self.temporal = nn.Conv2d(1, filters, (1, kernel))
        self.spatial = nn.Conv2d(filters, filters, (n_chans, 1), bias=spatial_bias)

    def forward(self, x: Tensor) -> Tensor:
        """The product of both convolutions, applied once."""
        temporal, spatial = self.temporal.weight[:, 0, 0], self.spatial.weight[..., 0]  # (f, taps), (g, f, chans)
        kernel = torch.einsum("gfc,fk->gck", spatial, temporal)
        bias = torch.einsum("gfc,f->g", spatial, self.temporal.bias)
        if self.spatial.bias is not None:
            bias = bias + self.spatial.bias
        return F.conv1d(x, kernel, bias)

    def plain(self, x: Tensor) -> Tensor:
        """Both convolutions one after the other: the tests' oracle."""
        return self.spatial(self.temporal(x[:, None]))[:, :, 0]
