"""EEGProject: the whole trial, flattened, through one residual projection.

The encoder of UBP (Wu et al., CVPR 2025, arXiv 2503.04207) and of most systems that lead THINGS-EEG2 in 2025-26
(shared/facts/landscape.md, section 0). Nearly all of its weights are one linear map of channels x samples.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.models.encoders.head import ResidualHead


class EEGProject(nn.Module):
    """Flatten, Linear, residual [GELU, Linear, dropout], LayerNorm; `subject` is not used.

    Args:
        n_chans: channels; the leaders use the 17 parietal and occipital ones (`data.channels`).
        n_times: samples of a trial.
        dim: size of the target embedding.
        dropout: dropout in the residual branch (published: 0.3).
    """

    def __init__(self, n_chans: int, n_times: int, dim: int, *, dropout: float = 0.3) -> None:
        super().__init__()
        self.head = ResidualHead(n_chans * n_times, dim, dropout)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        return self.head(eeg.flatten(1))
