"""ATM-S: attention over EEG channels, then a temporal-spatial convolution, then a projection.

Li et al., NeurIPS 2024 (arXiv 2403.07721), section 3; layer by layer after the official code at commit 49cb3a2
(`Retrieval/ATMS_retrieval.py`, `models/subject_layers/*`). By default it differs from that code on purpose:

* all `n_chans` channels go on: the official slice `[:, :63]` keeps the subject token and drops the last channel;
* no position is added (the paper's Table 4 finds "none" best; the code adds sinusoids since 2025-12-24);
* a subject id that is not in the table takes the shared token alone, not the whole batch with it;
* layers that the official forward never calls (subject-wise linears, time features) do not exist here.

`token_slice: official, position: sinusoidal, subject_token: per_subject` is today's main;
`attention_axis: time, position: sinusoidal, subject_token: none, subject_linear: true` is that of April 2024 (e0dfa58).
"""

from jaxtyping import Float, Int
from torch import Tensor

from eegrecon.models.encoders.atm_attention import ATMAttention
from eegrecon.models.encoders.head import ResidualHead
from eegrecon.models.encoders.temporal_spatial import TSConv


class ATMS(ATMAttention):
    """ATM-S: eeg (b, n_chans, n_times), normalised per channel, and subject (b,) int -> eeg_embeds (b, dim).

    Args:
        n_chans: channels, all of which reach the convolution.
        n_times: samples of a trial (250 in the paper); any number from 75 on.
        dim: size of the target embedding.
        attention_axis: what is a token: "channel" (the paper's text; main) or "time" (April 2024).
        position: "none" (the paper's best; in effect main before 2025-12-24), "sinusoidal" (main; April 2024) or
            "learnable".
        subject_token: "none" (April 2024), "shared" (one learned token) or "per_subject" (main), with a shared one for
            unknown subjects.
        token_slice: "all" channels, or the "official" subject token and all channels but the last (main).
        n_subjects: highest subject id with a token of its own.
        subject_linear: a linear map of every channel's time course after attention. April 2024 has a list of them for
            the subjects and always takes the first.
        heads: attention heads over channels; default 4 (over time it is one).
        hidden: width of the feed-forward layer; default 256 over channels, 2048 over time.
        layers: transformer layers.
        dropout: dropout of tokens, attention and feed-forward; default 0.25 over channels, 0.1 over time.
        conv_dropout: dropout after the spatial convolution.
        head_dropout: dropout in the projection.

    Raises:
        ConfigError: an argument has no such choice or contradicts another, or trials are too short.
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
        token_slice: str = "all",
        n_subjects: int = 10,
        subject_linear: bool = False,
        heads: int | None = None,
        hidden: int | None = None,
        layers: int = 1,
        dropout: float | None = None,
        conv_dropout: float = 0.5,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__(
            n_chans,
            n_times,
            attention_axis=attention_axis,
            position=position,
            subject_token=subject_token,
            token_slice=token_slice,
            n_subjects=n_subjects,
            subject_linear=subject_linear,
            heads=heads,
            hidden=hidden,
            layers=layers,
            dropout=dropout,
            encoder="atm_s",
        )
        self.dim = dim
        self.conv = TSConv(n_chans, n_times, dropout=conv_dropout)
        self.head = ResidualHead(self.conv.n_features, dim, head_dropout)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        return self.head(self.conv(self.attend(eeg, subject)))
