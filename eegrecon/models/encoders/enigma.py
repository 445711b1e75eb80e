"""A compact network with a layer of its own for every subject, in the style of ENIGMA.

ENIGMA (Alljoined, TMLR 2026) is described as a small spatio-temporal network shared by all subjects, a linear layer per
subject that aligns their features, and a shared projection: about 2.4 million weights for 30 subjects. No code of it
was read; sizes here are ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.head import ResidualHead
from eegrecon.models.encoders.temporal_spatial import TSConv


class SubjectLinear(nn.Module):
    """A linear layer per subject: x (b, width), subject (b,) -> (b, width).

    All start as the identity. Row 0 is for unknown subjects; it learns from trials whose subject was dropped.
    """

    def __init__(self, width: int, n_subjects: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width).repeat(n_subjects + 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(n_subjects + 1, width))

    def forward(self, x: Tensor, subject: Tensor) -> Tensor:
        """Every trial through its own subject's layer."""
        known = (subject > 0) & (subject < len(self.weight))
        rows = torch.where(known, subject, 0).long()
        y = torch.zeros_like(x)
        # One product a subject in the batch: gathering a matrix a trial would need width² numbers for each.
        for row in rows.unique().tolist():
            mine = rows == row
            y[mine] = torch.addmm(self.bias[row], x[mine], self.weight[row].T).to(y.dtype)
        return y


class Enigma(nn.Module):
    """eeg (b, n_chans, n_times), subject (b,) int, 0 or an unknown id for a new subject -> eeg_embeds (b, dim).

    Args:
        n_chans: channels.
        n_times: samples of a trial, at least 75.
        dim: size of the target embedding.
        n_subjects: highest subject id with a layer of its own.
        width: size of the features that are aligned.
        conv_dropout: dropout after the spatial convolution.
        dropout: dropout before and in the projection.

    Raises:
        ConfigError: trials are too short, or `n_subjects` is not positive.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        dim: int,
        *,
        n_subjects: int = 10,
        width: int = 192,
        conv_dropout: float = 0.5,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if n_subjects < 1:
            raise ConfigError(f"encoder.args.n_subjects must be at least 1, got {n_subjects} (encoder enigma).")
        self.n_subjects = n_subjects
        self.conv = TSConv(n_chans, n_times, dropout=conv_dropout, encoder="enigma")
        self.narrow = nn.Sequential(nn.Linear(self.conv.n_features, width), nn.LayerNorm(width), nn.GELU())
        self.subject = SubjectLinear(width, n_subjects)
        self.dropout = nn.Dropout(dropout)
        self.head = ResidualHead(width, dim, dropout)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        return self.head(self.dropout(self.subject(self.narrow(self.conv(eeg)), subject)))
