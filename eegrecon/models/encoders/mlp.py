"""A plain multi-layer perceptron on the flattened trial: the weakest network of ATM's comparison (its Table 8)."""

from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.errors import ConfigError


class MLP(nn.Module):
    """[Linear, GELU, dropout] for every hidden layer, then Linear to `dim`; `subject` is not used.

    Args:
        n_chans: channels.
        n_times: samples of a trial.
        dim: size of the target embedding.
        hidden: widths of the hidden layers.
        dropout: dropout after each of them.

    Raises:
        ConfigError: a width is not positive.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        dim: int,
        *,
        hidden: tuple[int, ...] | list[int] = (512,),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not all(isinstance(width, int) and width > 0 for width in hidden):
            raise ConfigError(f"encoder.args.hidden must be a list of positive widths, got {hidden!r} (encoder mlp).")
        widths = [n_chans * n_times, *hidden]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        return self.layers(eeg.flatten(1))
