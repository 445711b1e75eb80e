"""TSConv, the convolutional half of ATM-S, computed in a faster form that is exactly equal.

The published block (ATM `Retrieval/ATMS_retrieval.py`@49cb3a2, after NICE) convolves in time (25 taps), average-pools
(51 samples, stride 5), normalises, and only then meets its first nonlinearity. Everything before the ELU is linear, so

* convolution and pooling are one convolution with 25 + 51 - 1 = 75 taps and stride 5;
* the normalisation is folded into the same kernel before it is applied (`folded_norm.py`);
* a strided convolution with one input channel is a matrix product with a banded matrix, which CPUs do several times
  faster than their convolution routines.

The parameters stay those of the published block: `tsconv` holds them and, called as a module, computes the plain form.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.folded_norm import OverRanks, conv_moments, update_running

# Output samples computed by one matrix product. A banded matrix for 18 outputs wastes half of its products and is
# still the fastest: 36 multiplies more zeros, 9 makes thin spatial products (measured, 2 cores with AVX-512).
_CHUNK = 18


class TSConv(nn.Module):
    """Temporal-spatial convolution: (b, n_chans, n_times) -> (b, n_features), unitless.

    Args:
        n_chans: channels; the spatial convolution spans them all.
        n_times: samples of a trial; at least `kernel + pool - 1`.
        filters: temporal and spatial filters (published: 40).
        kernel: taps of the temporal convolution (25).
        pool: samples of the average pooling (51).
        stride: stride of the average pooling (5).
        dropout: dropout after the spatial convolution (0.5).
        encoder: the name in the error.

    Raises:
        ConfigError: a trial is too short for kernel and pooling.
    """

    tsconv: Any  # a Sequential, indexed by its published positions
    projection: Any
    spread: Tensor

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        *,
        filters: int = 40,
        kernel: int = 25,
        pool: int = 51,
        stride: int = 5,
        dropout: float = 0.5,
        encoder: str = "atm_s",
    ) -> None:
        super().__init__()
        self.taps = kernel + pool - 1
        if n_times < self.taps:
            raise ConfigError(
                f"Encoder {encoder} needs trials of at least {self.taps} samples (temporal kernel {kernel} and pooling "
                f"{pool}), got {n_times}: widen data.window."
            )
        self.pool, self.stride = pool, stride
        self.n_out = (n_times - self.taps) // stride + 1
        self.n_features = filters * self.n_out
        self.tsconv = nn.Sequential(
            nn.Conv2d(1, filters, (1, kernel)),
            nn.AvgPool2d((1, pool), (1, stride)),
            nn.BatchNorm2d(filters),
            nn.ELU(),
            nn.Conv2d(filters, filters, (n_chans, 1)),
            nn.BatchNorm2d(filters),
            nn.ELU(),
            nn.Dropout(dropout),
        )
        self.projection = nn.Conv2d(filters, filters, (1, 1))
        # Row i holds 1 / pool where tap i of the convolution lands after pooling.
        spread = torch.stack([F.pad(torch.full((pool,), 1.0 / pool), (tap, kernel - 1 - tap)) for tap in range(kernel)])
        self.register_buffer("spread", spread, persistent=False)
        # Set by `modules.distributed.synchronise_batch_statistics`: the differentiable mean over all ranks.
        self.mean_over_ranks: OverRanks = None

    def forward(self, x: Tensor) -> Tensor:
        """The block on tokens (b, n_chans, n_times)."""
        b, n_chans, n_times = x.shape
        rows = x.reshape(b * n_chans, n_times)
        kernel, bias = self._folded_kernel(rows)
        filters = kernel.shape[0]
        spatial, norm = self.tsconv[4], self.tsconv[5]
        # Token-major order of (channel, filter), as the rows below come out.
        weight = spatial.weight[..., 0].transpose(1, 2).reshape(1, filters, -1).expand(b, -1, -1)
        pieces = []
        for start in range(0, self.n_out, _CHUNK):
            n_out = min(_CHUNK, self.n_out - start)
            band = self._band(kernel, n_out)
            window = rows[:, self.stride * start : self.stride * start + band.shape[1]]
            y = F.elu(F.linear(window, band, bias.repeat_interleave(n_out)), inplace=True)
            pieces.append(torch.bmm(weight, y.view(b, n_chans * filters, n_out)))
        y = torch.cat(pieces, dim=2) + spatial.bias[:, None]
        y = self.tsconv[7](F.elu(norm(y[:, :, None])))[:, :, 0]
        # A 1x1 convolution is a matrix product; the convolution routine's backward is far slower on CPU.
        return (torch.matmul(self.projection.weight[:, :, 0, 0], y) + self.projection.bias[:, None]).flatten(1)

    def plain(self, x: Tensor) -> Tensor:
        """The same block step by step, as published: the oracle of the tests and the benchmark's baseline."""
        return self.projection(self.tsconv(x[:, None])).flatten(1)

    def _folded_kernel(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Convolution, pooling and normalisation as kernel (filters, taps) and bias (filters,)."""
        conv, norm = self.tsconv[0], self.tsconv[2]
        # Statistics and folding stay in full precision under autocast.
        with torch.autocast(rows.device.type, enabled=False):
            kernel = conv.weight[:, 0, 0] @ self.spread
            mean, var = (
                self._statistics(rows, kernel, conv.bias) if norm.training else (norm.running_mean, norm.running_var)
            )
            scale = norm.weight * torch.rsqrt(var + norm.eps)
            return kernel * scale[:, None], (conv.bias - mean) * scale + norm.bias

    def _statistics(self, rows: Tensor, kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every filter's output; updates the running ones."""
        mean, var = conv_moments(rows, kernel, self.n_out, self.stride, self.mean_over_ranks)
        update_running(self.tsconv[2], mean + bias, var, rows.shape[0] * self.n_out, self.mean_over_ranks)
        return mean + bias, var

    def _band(self, kernel: Tensor, n_out: int) -> Tensor:
        """The banded matrix (filters * n_out, taps + stride * (n_out - 1)) that is the strided convolution."""
        width = self.taps + self.stride * (n_out - 1)
        shifts = [F.pad(kernel, (self.stride * t, width - self.taps - self.stride * t)) for t in range(n_out)]
        return torch.stack(shifts, dim=1).reshape(-1, width)
