"""The attention of ATM, in the two forms that the paper and its code have had: over channels, or over time.

Li et al., NeurIPS 2024 (arXiv 2403.07721), section 3, and the official code: attention over channels as on main (commit
49cb3a2), over time as in April 2024 (commit e0dfa58). facts/atm.md section 2 says which numbers came from which.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eegrecon.errors import ConfigError

_AXES = ("channel", "time")
_POSITIONS = ("none", "sinusoidal", "learnable")
_SUBJECT_TOKENS = ("none", "shared", "per_subject")
_SLICES = ("all", "official")


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
        self.position = _position(position, n_chans, n_times)
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


class TimeLayer(nn.Module):
    """Attention over time (b, n_chans, n_times) -> the same shape: every sample is a token, the channels its features.

    One head, for 63 channels cannot be shared out evenly. The April 2024 module registers each layer twice and calls
    one of them, so the paper's Table 2 counts twice its weights: 2 x 276,539 = 553,078.
    """

    def __init__(self, n_chans: int, n_times: int, position: str, layers: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.position = _position(position, n_times, n_chans)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(n_chans, 1, hidden, dropout, batch_first=True) for _ in range(layers)
        )

    def forward(self, eeg: Tensor) -> Tensor:
        """All layers."""
        x = eeg.transpose(1, 2)
        if self.position is not None:
            x = x + self.position
        for layer in self.layers:
            x = layer(x)
        return x.transpose(1, 2)


class ATMAttention(nn.Module):
    """What comes before ATM's convolution: eeg (b, n_chans, n_times), subject (b,) -> (b, n_chans, n_times).

    Args: see `ATMS`, which lists them; `encoder` is the name in errors.

    Raises:
        ConfigError: an argument has no such choice, or two of them contradict each other.
    """

    n_subjects: int | None = None  # highest subject id with a row of its own; None: subjects have none

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        *,
        attention_axis: str,
        position: str,
        subject_token: str,
        token_slice: str,
        n_subjects: int,
        subject_linear: bool,
        heads: int | None,
        hidden: int | None,
        layers: int,
        dropout: float | None,
        encoder: str,
    ) -> None:
        super().__init__()
        _one_of(encoder, "attention_axis", attention_axis, _AXES)
        _one_of(encoder, "position", position, _POSITIONS)
        _one_of(encoder, "subject_token", subject_token, _SUBJECT_TOKENS)
        _one_of(encoder, "token_slice", token_slice, _SLICES)
        self.n_chans, self.n_times, self.attention_axis = n_chans, n_times, attention_axis
        if attention_axis == "time":
            _check_time(encoder, subject_token, token_slice, heads)
            hidden, dropout = hidden or 2048, 0.1 if dropout is None else dropout
            self.time = TimeLayer(n_chans, n_times, position, layers, hidden, dropout)
        else:
            if token_slice == "official" and subject_token == "none":
                raise ConfigError(
                    "encoder.args.token_slice official drops the last channel in favour of the subject token, but "
                    "subject_token is none: set it to shared or per_subject, or token_slice to all "
                    f"(encoder {encoder})."
                )
            heads, hidden, dropout = heads or 4, hidden or 256, 0.25 if dropout is None else dropout
            self.n_subjects = n_subjects if subject_token == "per_subject" else None
            self.tokens = ChannelTokens(n_chans, n_times, position, subject_token, n_subjects, dropout)
            self.layers = nn.ModuleList(TransformerLayer(n_times, heads, hidden, dropout) for _ in range(layers))
            self.norm = nn.LayerNorm(n_times)
        self.kept = slice(0, n_chans) if token_slice == "official" else slice(-n_chans, None)
        self.subject_linear = nn.Linear(n_times, n_times) if subject_linear else None

    def attend(self, eeg: Tensor, subject: Tensor) -> Tensor:
        """Every channel, with what it took from the others (or every sample, from the others)."""
        if self.attention_axis == "time":
            x = self.time(eeg)
        else:
            x = self.tokens(eeg, subject)
            for layer in self.layers:
                x = layer(x)
            x = self.norm(x)[:, self.kept]  # the subject token stands first
        return x if self.subject_linear is None else self.subject_linear(x)


def _position(name: str, n_tokens: int, width: int) -> Tensor | None:
    """Positions (n_tokens, width): a parameter, a tensor, or None; see `ChannelTokens`."""
    if name == "sinusoidal":
        return nn.Buffer(sinusoids(n_tokens, width))
    return nn.Parameter(0.02 * torch.randn(n_tokens, width)) if name == "learnable" else None


def _one_of(encoder: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"encoder.args.{name} must be one of {', '.join(choices)}, got {value!r} (encoder {encoder})."
        )


def _check_time(encoder: str, subject_token: str, token_slice: str, heads: int | None) -> None:
    """What belongs to channel tokens alone is refused, not ignored."""
    wrong = []
    if subject_token != "none":
        wrong.append(f"subject_token is {subject_token} (set it to none)")
    if token_slice != "all":
        wrong.append(f"token_slice is {token_slice} (set it to all)")
    if heads not in (None, 1):
        wrong.append(f"heads is {heads} (leave it out)")
    if wrong:
        raise ConfigError(
            f"encoder.args.attention_axis time has samples for tokens and one head, but {'; '.join(wrong)} "
            f"(encoder {encoder})."
        )
