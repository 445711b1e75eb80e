"""EEGNet: temporal filters, spatial filters for each of them, a separable convolution.

Lawhern et al. 2018 (J. Neural Eng. 15:056013), Table 2 ("EEGNetV4" is its fourth arXiv version's architecture, named so
by braindecode). `EEGNetFeatures` is the network without its classifier, which ATM-E uses as its backbone.

Everything before the first ELU is linear: the spatial filters are applied first, which leaves `filters * depth` rows
for the temporal ones instead of `filters * n_chans`, and the normalisation between them is folded in.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.folded_norm import OverRanks, conv_moments, update_running


class EEGNetFeatures(nn.Module):
    """(b, n_chans, n_times) -> (b, n_features).

    Args:
        n_chans: channels.
        n_times: samples of a trial, at least 32 (it is pooled by 4 and by 8).
        filters: F1, temporal filters.
        depth: D, spatial filters for each temporal one.
        pointwise: F2, filters of the separable convolution.
        kernel: taps in time.
        dropout: dropout after each of the two blocks.
        encoder: the name in the error.

    Raises:
        ConfigError: trials are too short.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        *,
        filters: int,
        depth: int,
        pointwise: int,
        kernel: int,
        dropout: float,
        encoder: str = "eegnet",
    ) -> None:
        super().__init__()
        # An even kernel, padded by half of itself on both sides, adds one sample; so does the second, of 16 taps.
        n_first = (n_times + 2 * (kernel // 2) - kernel + 1) // 4
        n_out = (n_first + 1) // 8
        if n_out < 1:
            raise ConfigError(
                f"Encoder {encoder} needs trials of at least 32 samples (it pools by 4 and by 8), got {n_times}: widen "
                "data.window."
            )
        spatial = filters * depth
        self.temporal = nn.Conv2d(1, filters, (1, kernel), padding=(0, kernel // 2), bias=False)
        self.norm1 = nn.BatchNorm2d(filters, momentum=0.01, eps=1e-3)
        self.spatial = nn.Conv2d(filters, spatial, (n_chans, 1), groups=filters, bias=False)
        self.norm2 = nn.BatchNorm2d(spatial, momentum=0.01, eps=1e-3)
        self.depthwise = nn.Conv2d(spatial, spatial, (1, 16), padding=(0, 8), groups=spatial, bias=False)
        self.mix = nn.Conv2d(spatial, pointwise, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(pointwise, momentum=0.01, eps=1e-3)
        self.elu, self.dropout = nn.ELU(), nn.Dropout(dropout)
        self.pool4, self.pool8 = nn.AvgPool2d((1, 4)), nn.AvgPool2d((1, 8))
        self.n_features = pointwise * n_out
        # Set by `modules.distributed.synchronise_batch_statistics`: the differentiable mean over all ranks.
        self.mean_over_ranks: OverRanks = None

    def forward(self, eeg: Tensor) -> Tensor:
        """Features of every trial."""
        return self._rest(self._filtered(eeg))

    def plain(self, eeg: Tensor) -> Tensor:
        """The same step by step, as published: the oracle of the tests."""
        x = self.norm1(self.temporal(eeg[:, None]))
        return self._rest(nn.functional.conv2d(x, self._short_filters(), groups=self.spatial.groups))

    def _rest(self, x: Tensor) -> Tensor:
        x = self.dropout(self.pool4(self.elu(self.norm2(x))))
        x = self.elu(self.norm3(self.mix(self.depthwise(x))))
        return self.dropout(self.pool8(x)).flatten(1)

    def _short_filters(self) -> Tensor:
        """The published constraint: no spatial filter is longer than 1. At use, so that weights stay ordinary."""
        return torch.renorm(self.spatial.weight, p=2, dim=0, maxnorm=1.0)

    def _filtered(self, eeg: Tensor) -> Tensor:
        """Temporal filters, normalisation and spatial filters: (b, filters * depth, 1, n_out)."""
        kernel, spatial = self.temporal.weight[:, 0, 0], self._short_filters()[:, 0, :, 0]
        pad, depth = kernel.shape[1] // 2, self.spatial.out_channels // self.spatial.groups
        scale, shift = self._normalisation(nn.functional.pad(eeg, (pad, pad)).flatten(0, 1), kernel)
        each = (kernel * scale[:, None]).repeat_interleave(depth, 0)  # a filter for every spatial one
        bias = shift.repeat_interleave(depth) * spatial.sum(1)
        mixed = torch.matmul(spatial, eeg)
        return nn.functional.conv1d(mixed, each[:, None], bias, padding=pad, groups=len(each))[:, :, None]

    def _normalisation(self, rows: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """The first normalisation as scale and shift (filters,) of the temporal filters' output."""
        norm: Any = self.norm1
        n_out = rows.shape[1] - kernel.shape[1] + 1
        # Statistics and folding stay in full precision under autocast.
        with torch.autocast(rows.device.type, enabled=False):
            if norm.training:
                mean, var = conv_moments(rows, kernel, n_out, 1, self.mean_over_ranks)
                update_running(norm, mean, var, rows.shape[0] * n_out, self.mean_over_ranks)
            else:
                mean, var = norm.running_mean, norm.running_var
            scale = norm.weight * torch.rsqrt(var + norm.eps)
            return scale, norm.bias - scale * mean


class EEGNetV4(nn.Module):
    """EEGNet with a linear layer to the embedding; `subject` is not used.

    Args:
        n_chans: channels.
        n_times: samples of a trial, at least 32.
        dim: size of the target embedding.
        filters: F1 (8).
        depth: D (2).
        pointwise: F2 (16).
        kernel: taps in time (64: half a second at the paper's 128 Hz, a quarter at 250).
        dropout: 0.5 within a subject, 0.25 across subjects in the paper.

    Raises:
        ConfigError: trials are too short.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        dim: int,
        *,
        filters: int = 8,
        depth: int = 2,
        pointwise: int = 16,
        kernel: int = 64,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.features = EEGNetFeatures(
            n_chans, n_times, filters=filters, depth=depth, pointwise=pointwise, kernel=kernel, dropout=dropout
        )
        self.head = nn.Linear(self.features.n_features, dim)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        return self.head(self.features(eeg))
