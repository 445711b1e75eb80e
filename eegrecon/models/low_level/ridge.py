"""Ridge regression from EEG to latents: the linear reference, fitted in closed form."""

import math
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.models.encoders.ridge import ALPHAS, Ridge


class RidgeLatents(nn.Module):
    """eeg (b, n_chans, n_times), subject (b,) int (not used) -> latents (b, *latent_shape), linear in the EEG.

    Args:
        n_chans: channels.
        n_times: samples of a trial.
        latent_shape: of one latent, any.
        alphas: the penalties to choose from, relative as in `models.encoders.ridge.fit_ridge`.
        samples_per_bin: the map sees means over so many consecutive samples (5: 20 ms at 250 Hz).

    Raises:
        ValueError: the size of a bin is out of range.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        latent_shape: Sequence[int],
        *,
        alphas: Sequence[float] = ALPHAS,
        samples_per_bin: int = 5,
    ) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        dim = math.prod(self.latent_shape)
        self.ridge = Ridge(n_chans, n_times, dim, alphas=alphas, samples_per_bin=samples_per_bin)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        """Latents (b, *latent_shape)."""
        return self.ridge(eeg, subject).view(-1, *self.latent_shape)
