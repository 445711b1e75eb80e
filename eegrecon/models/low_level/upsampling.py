"""The paper's low-level network: every channel's time course through one linear map, then up-sampling from one pixel.

Li et al. 2024 (arXiv 2403.07721), `encoder_low_level` in Generation/train_vae_latent_512_low_level_no_average.py of
dongyangli-del/EEG_Image_decode@22c84ad. The official module has 143,333,269 parameters at 63 channels, 250 samples and
latents of 4 x 64 x 64; ours has one less: its `logit_scale` belongs to a contrastive loss that is commented out there.
"""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.errors import ConfigError


class UpSampling(nn.Module):
    """eeg (b, n_chans, n_times), subject (b,) int (not used) -> (b, c, 2^k, 2^k), any range.

    `features` numbers of each channel (one map for all) are the n_chans * features channels of a picture of one pixel,
    which k transposed convolutions (4 x 4, stride 2) double k times and two 1 x 1 ones bring to c channels; batch norm
    and ReLU after all but the last. Before the t-th last up-sampling there are `width * 2^t` channels, whatever k is:
    1024, 512, … 32 for the paper's six.

    Of the first kernel only the middle 2 x 2 of 4 x 4 meet a picture of one pixel, so three quarters of it (99,090,432
    of the official parameters) never see a gradient. They are kept to be the published network, and left out of the
    computation, which is then exactly equal and four times cheaper.

    Args:
        n_chans: channels.
        n_times: samples of a trial.
        latent_shape: (c, h, w) with h = w = 2^k, k at least 1.
        features: numbers of each channel after the linear map (published: 128).
        width: channels after the last up-sampling (32).
        narrow: channels before the last convolution (16).

    Raises:
        ConfigError: latents of another form.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        latent_shape: Sequence[int],
        *,
        features: int = 128,
        width: int = 32,
        narrow: int = 16,
    ) -> None:
        super().__init__()
        c, doublings = check_latents("upsampling", latent_shape)
        self.linear = nn.Linear(n_times, features)
        widths = [n_chans * features, *(width * 2**t for t in reversed(range(doublings)))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        # 1 x 1: the same as `Conv2d`, and what the official module holds.
        layers += [nn.ConvTranspose2d(width, narrow, 1), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
        self.upsampler = nn.Sequential(*layers, nn.ConvTranspose2d(narrow, c, 1))

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Latents (b, c, h, w)."""
        pixel = self.linear(eeg).flatten(1)
        first: nn.ConvTranspose2d = self.upsampler[0]  # type: ignore[assignment]
        assert first.bias is not None
        middle = first.weight[:, :, 1:3, 1:3]
        grown = (pixel @ middle.flatten(1)).unflatten(1, middle.shape[1:]) + first.bias[:, None, None]
        return self.upsampler[1:](grown)

    def plain(self, eeg: Tensor) -> Tensor:
        """The same network layer by layer, as published: the oracle of the tests."""
        return self.upsampler(self.linear(eeg).flatten(1)[:, :, None, None])


def check_latents(network: str, latent_shape: Sequence[int]) -> tuple[int, int]:
    """(c, k) of latents of shape (c, 2^k, 2^k).

    >>> check_latents("upsampling", (4, 64, 64))
    (4, 6)

    Raises:
        ConfigError: They have another form.
    """
    shape = tuple(latent_shape)
    side = shape[-1] if len(shape) == 3 else 0
    if len(shape) != 3 or shape[1] != side or side < 2 or side & (side - 1):
        raise ConfigError(
            f"The network {network} makes latents of c x 2^k x 2^k by doubling a small picture, but latent_target has "
            f"targets of shape {shape}: name latents of square pictures whose size is a power of two."
        )
    return shape[0], side.bit_length() - 1
