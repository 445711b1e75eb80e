"""EEGConformer: convolutional patches in time, then a transformer over them.

Song et al. 2023 (IEEE TNSRE 31:710), Figure 1 and Table I. Its last layer gives an embedding; no log-softmax.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.combined_conv import CombinedConv


class EEGConformer(nn.Module):
    """EEGConformer: eeg (b, n_chans, n_times), subject (b,) int (not used) -> eeg_embeds (b, dim).

    Args:
        n_chans: channels.
        n_times: samples of a trial, at least kernel + pool - 1.
        dim: size of the target embedding.
        filters: filters, and width of a token (40).
        kernel: taps in time (25).
        pool: samples of the mean pooling (75).
        stride: its stride (15).
        layers: transformer layers (6).
        heads: attention heads (10).
        hidden: widths of the two fully connected layers before the last (256, 32). The second is a bottleneck for
            embeddings of hundreds of dimensions; it is kept as published.
        conv_dropout: dropout after the pooling (0.5).
        dropout: dropout in the transformer (0.5).

    Raises:
        ConfigError: trials are too short, or the heads do not divide the filters.
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
        layers: int = 6,
        heads: int = 10,
        hidden: tuple[int, int] | list[int] = (256, 32),
        conv_dropout: float = 0.5,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if n_times < kernel + pool - 1:
            raise ConfigError(
                f"Encoder eeg_conformer needs trials of at least {kernel + pool - 1} samples (kernel {kernel} and "
                f"pooling {pool}), got {n_times}: widen data.window or set encoder.args.pool."
            )
        if filters % heads:
            raise ConfigError(
                f"encoder.args.heads is {heads}, which does not divide encoder.args.filters {filters} (eeg_conformer)."
            )
        self.pool, self.stride = pool, stride
        self.conv = CombinedConv(n_chans, filters, kernel, spatial_bias=True)
        self.norm = nn.BatchNorm1d(filters)
        self.dropout = nn.Dropout(conv_dropout)
        self.project = nn.Linear(filters, filters)  # the published 1x1 convolution
        block = nn.TransformerEncoderLayer(
            filters, heads, 4 * filters, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        n_tokens = (n_times - kernel + 1 - pool) // stride + 1
        wide, narrow = hidden
        self.head = nn.Sequential(
            nn.Linear(filters * n_tokens, wide),
            nn.ELU(),
            nn.Dropout(0.5),
            nn.Linear(wide, narrow),
            nn.ELU(),
            nn.Dropout(0.3),
            nn.Linear(narrow, dim),
        )

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        x = F.avg_pool1d(F.elu(self.norm(self.conv(eeg))), self.pool, self.stride)
        tokens = self.project(self.dropout(x).transpose(1, 2))
        return self.head(self.transformer(tokens).flatten(1))
