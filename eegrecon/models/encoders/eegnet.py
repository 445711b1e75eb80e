"""EEGNet: temporal filters, spatial filters for each of them, a separable convolution.

Lawhern et al. 2018 (J. Neural Eng. 15:056013), Table 2 ("EEGNetV4" is its fourth arXiv version's architecture, named so
by braindecode). `EEGNetFeatures` is the network without its classifier, which ATM-E uses as its backbone.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.errors import ConfigError


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

    def forward(self, eeg: Tensor) -> Tensor:
        """Features of every trial."""
        x = self.norm1(self.temporal(eeg[:, None]))
        # The published constraint: no spatial filter is longer than 1. Applied at use, so that weights stay ordinary.
        weight = torch.renorm(self.spatial.weight, p=2, dim=0, maxnorm=1.0)
        x = nn.functional.conv2d(x, weight, groups=self.spatial.groups)
        x = self.dropout(self.pool4(self.elu(self.norm2(x))))
        x = self.elu(self.norm3(self.mix(self.depthwise(x))))
        return self.dropout(self.pool8(x)).flatten(1)


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
