"""A small low-level network: a linear map over channels, one over time, then up-sampling from 4 x 4 pixels.

Why it is smaller: the paper's network mixes channels in its first transposed convolution only, where it spends 132 of
its 143 million parameters; one spatial map that holds at all times and one temporal map that holds for all spatial
components do that with ten thousand. What EEG tells of a picture's layout is coarse, so the dense part ends at 4 x 4
pixels and not at one. On the pocket set it is better than ridge and the paper's network, at 2 s an epoch on one core
(theirs: 30 s); NICE's convolutions in the place of the two maps learn slowly (experiments/LOG.md).
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.models.low_level.upsampling import check_latents

_START = 4  # pixels a side after the dense part, or fewer for smaller latents
_NARROWEST = 16  # channels


class Separable(nn.Module):
    """eeg (b, n_chans, n_times), subject (b,) int (not used) -> (b, c, 2^k, 2^k), any range.

    Args:
        n_chans: channels.
        n_times: samples of a trial.
        latent_shape: (c, h, w) with h = w = 2^k, k at least 1.
        spatial: components over channels.
        temporal: components over time.
        width: channels of the 4 x 4 pixels; half as many after each doubling, but no less than 16.
        dropout: dropout before the dense part.

    Raises:
        ConfigError: latents of another form.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        latent_shape: Sequence[int],
        *,
        spatial: int = 32,
        temporal: int = 32,
        width: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        c, doublings = check_latents("separable", latent_shape)
        start = min(_START, 2**doublings)
        self.spatial, self.temporal = nn.Linear(n_chans, spatial), nn.Linear(n_times, temporal)
        n_features = spatial * temporal
        self.dense = nn.Sequential(
            nn.BatchNorm1d(n_features),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(n_features, width * start**2),
            nn.Unflatten(1, (width, start, start)),
            nn.BatchNorm2d(width),
            nn.GELU(),
        )
        layers: list[nn.Module] = []
        for _ in range(doublings - (start.bit_length() - 1)):
            after = max(_NARROWEST, width // 2)
            layers += [nn.ConvTranspose2d(width, after, 4, 2, 1), nn.BatchNorm2d(after), nn.GELU()]
            width = after
        self.upsampler = nn.Sequential(*layers, nn.Conv2d(width, c, 3, padding=1))

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Latents (b, c, h, w)."""
        components = self.temporal(self.spatial(eeg.mT).mT)
        return self.upsampler(self.dense(components.flatten(1)))
