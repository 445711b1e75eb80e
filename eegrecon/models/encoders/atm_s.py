"""ATM-S: attention over EEG channels, then a temporal-spatial convolution, then a projection.

Li et al., NeurIPS 2024 (arXiv 2403.07721), section 3; layer by layer after the official code at commit 49cb3a2
(`Retrieval/ATMS_retrieval.py`, `models/subject_layers/*`), with these deliberate differences:

* all `n_chans` channels go on: the official slice `[:, :63]` keeps the subject token and drops the last channel;
* no position is added by default (the paper's Table 4 finds "none" best; the code adds sinusoids since 2025-12-24);
* a subject id that is not in the table takes the shared token alone, not the whole batch with it;
* layers that the official forward never calls (subject-wise linears, time features) do not exist here.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.temporal_spatial import TSConv

_POSITIONS = ("none", "sinusoidal", "learnable")
_SUBJECT_TOKENS = ("none", "shared", "per_subject")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"encoder.args.{name} must be one of {', '.join(choices)}, got {value!r} (encoder atm_s).")


def sinusoids(n_tokens: int, width: int) -> Tensor:
    """Fixed positions (n_tokens, width), Vaswani et al. 2017, section 3.5."""
    position = torch.arange(n_tokens)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(n_tokens, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: width // 2])
    return table


class ChannelTokens(nn.Module):
    """Every channel's time course becomes a token: (b, n_chans, n_times) -> (b, n_tokens, n_times).

    The subject token, if any, stands first. Row 0 of its table is the token of unknown subjects (and the only row of
    `shared`); row i belongs to subject i.
    """

    def __init__(self, n_chans: int, n_times: int, position: str, subject_token: str, n_subjects: int, dropout: float):
        super().__init__()
        self.value = nn.Linear(n_times, n_times)
        if position == "sinusoidal":
            self.register_buffer("position", sinusoids(n_chans, n_times))
        elif position == "learnable":
            self.position = nn.Parameter(0.02 * torch.randn(n_chans, n_times))
        else:
            self.register_parameter("position", None)
        self.subject = None
        if subject_token != "none":
            rows = 1 + (n_subjects if subject_token == "per_subject" else 0)
            self.subject = nn.Embedding(rows, n_times)
        self.dropout = nn.Dropout(dropout)

    def forward(self, eeg: Tensor, subject: Tensor) -> Tensor:
        """Tokens (b, n_chans [+ 1], n_times)."""
        x = self.value(eeg)
        if self.position is not None:
            x = x + self.position
        if self.subject is not None:
            known = (subject > 0) & (subject < self.subject.num_embeddings)
            token = self.subject(torch.where(known, subject, 0).long())
            x = torch.cat([token[:, None].to(x.dtype), x], dim=1)
        return self.dropout(x)


class TransformerLayer(nn.Module):
    """Post-norm layer (b, n, width) -> (b, n, width): self-attention with `width // heads` per head, temporal FFN."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        inner = heads * self.head_width  # 4 * 62 = 248 at 250 samples, as published
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        x = self.norm1(x + self.dropout(self.attend(x)))
        y = self.dropout(F.gelu(self.expand(x)))
        return self.norm2(x + self.dropout(self.contract(y)))

    def attend(self, x: Tensor) -> Tensor:
        """Scaled dot-product attention with dropout on the weights."""
        b, n, _ = x.shape
        heads = (b, n, self.heads, self.head_width)
        q, k, v = (project(x).view(heads).transpose(1, 2) for project in (self.query, self.key, self.value))
        dropout = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


class ResidualHead(nn.Module):
    """Linear to `dim`, a residual [GELU, Linear, dropout], LayerNorm: (b, n_features) -> (b, dim)."""

    def __init__(self, n_features: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.inward, self.residual = nn.Linear(n_features, dim), nn.Linear(dim, dim)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """The embedding; LayerNorm leaves a norm of about sqrt(dim), not 1."""
        x = self.inward(x)
        return self.norm(x + self.dropout(self.residual(F.gelu(x))))


class ATMS(nn.Module):
    """ATM-S: eeg (b, n_chans, n_times), normalised per channel, and subject (b,) int -> eeg_embeds (b, dim).

    Args:
        n_chans: channels, all of which reach the convolution.
        n_times: samples of a trial (250 in the paper); any number from 75 on.
        dim: size of the target embedding.
        attention_axis: "channel"; the time axis of the April 2024 code is not built yet.
        position: "none", "sinusoidal" or "learnable" over channels.
        subject_token: "none", "shared" (one learned token) or "per_subject" (with a shared one for unknown subjects).
        n_subjects: rows of the per-subject table.
        heads: attention heads.
        hidden: width of the feed-forward layer.
        layers: transformer layers.
        dropout: dropout of tokens, attention and feed-forward.
        conv_dropout: dropout after the spatial convolution.
        head_dropout: dropout in the projection.

    Raises:
        ConfigError: an argument has no such choice, or trials are too short.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        dim: int,
        *,
        attention_axis: str = "channel",
        position: str = "none",
        subject_token: str = "shared",
        n_subjects: int = 10,
        heads: int = 4,
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.25,
        conv_dropout: float = 0.5,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if attention_axis == "time":
            raise ConfigError("encoder.args.attention_axis=time comes with issue 4; use channel (encoder atm_s).")
        _one_of("attention_axis", attention_axis, ("channel",))
        _one_of("position", position, _POSITIONS)
        _one_of("subject_token", subject_token, _SUBJECT_TOKENS)
        self.n_chans, self.n_times, self.dim = n_chans, n_times, dim
        self.tokens = ChannelTokens(n_chans, n_times, position, subject_token, n_subjects, dropout)
        self.layers = nn.ModuleList(TransformerLayer(n_times, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(n_times)
        self.conv = TSConv(n_chans, n_times, dropout=conv_dropout)
        self.head = ResidualHead(self.conv.n_features, dim, head_dropout)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        x = self.tokens(eeg, subject)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)[:, -self.n_chans :]  # the subject token stands first and is dropped, no channel is
        return self.head(self.conv(x))
