"""ATM-E: ATM with EEGNet in the place of the temporal-spatial convolution.

Li et al., NeurIPS 2024, Table 3 and Appendix; official `Retrieval/ATME_retrieval.py` (facts/atm.md 2.2): attention over
time with one head, a linear map of every channel's time course, EEGNetV4 with F1=8, D=20, F2=160 and a kernel of 4
samples whose classifier gives 1440 features, and ATM's projection.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.models.encoders.atm_attention import ATMAttention
from eegrecon.models.encoders.eegnet import EEGNetFeatures
from eegrecon.models.encoders.head import ResidualHead


class ATME(ATMAttention):
    """ATM-E: eeg (b, n_chans, n_times), normalised per channel, and subject (b,) int -> eeg_embeds (b, dim).

    Args:
        n_chans: channels.
        n_times: samples of a trial, at least 32.
        dim: size of the target embedding.
        attention_axis: "time" (official) or "channel"; this and the next ones as in `ATMS`.
        position: see there.
        subject_token: see there; "none" over time.
        token_slice: see there.
        n_subjects: see there.
        subject_linear: see there.
        heads: see there.
        hidden: see there.
        layers: see there.
        dropout: of the attention; see there.
        features: what EEGNet's last layer gives to the projection.
        conv_dropout: dropout in EEGNet.
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
        attention_axis: str = "time",
        position: str = "none",
        subject_token: str = "none",
        token_slice: str = "all",
        n_subjects: int = 10,
        subject_linear: bool = True,
        heads: int | None = None,
        hidden: int | None = None,
        layers: int = 1,
        dropout: float | None = None,
        features: int = 1440,
        conv_dropout: float = 0.25,
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
            encoder="atm_e",
        )
        self.conv = EEGNetFeatures(
            n_chans, n_times, filters=8, depth=20, pointwise=160, kernel=4, dropout=conv_dropout, encoder="atm_e"
        )
        self.features = nn.Linear(self.conv.n_features, features)
        self.head = ResidualHead(features, dim, head_dropout)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        return self.head(self.features(self.conv(self.attend(eeg, subject))))
