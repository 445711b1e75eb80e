"""What `model.safetensors` of stage 1 holds: input normalisation, encoder, latent head and temperature."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class AlignedEncoder(nn.Module):
    """An EEG encoder that takes EEG as the trial store holds it, with what the losses need beside it.

    State: `encoder.*`, `latent_head.*` (if any), `channel_mean`, `channel_std`, `logit_scale`.

    Args:
        encoder: `forward(eeg (b, n_chans, n_times), subject (b,)) -> (b, dim)`.
        latent_head: `forward(eeg_embeds (b, dim)) -> (b, *latent_shape)`, or None.
        channel_mean: (n_chans,) mean of the training trials, in the store's unit (µV, or unitless after MVNN).
        channel_std: (n_chans,) standard deviation of the training trials, positive.

    Raises:
        ValueError: a standard deviation is not positive, or the two shapes differ.
    """

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(
        self, encoder: nn.Module, latent_head: nn.Module | None, channel_mean: Tensor, channel_std: Tensor
    ) -> None:
        super().__init__()
        if channel_mean.shape != channel_std.shape or channel_mean.ndim != 1:
            shapes = f"{tuple(channel_mean.shape)} and {tuple(channel_std.shape)}"
            raise ValueError(f"channel_mean and channel_std must both be (n_chans,), got {shapes}")
        if not bool((channel_std > 0).all()):
            dead = torch.nonzero(~(channel_std > 0)).flatten().tolist()
            raise ValueError(f"channel_std must be positive, but channels {dead} are constant in the training trials")
        self.encoder = encoder
        self.latent_head = latent_head
        self.register_buffer("channel_mean", channel_mean.detach().clone().float())
        self.register_buffer("channel_std", channel_std.detach().clone().float())
        # Log space, `.exp()` at use (CLIP, Radford et al. 2021); 0.07 is ATM's and CLIP's initial temperature.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """EEG (b, n_chans, n_times) in the store's unit, subject (b,) int -> eeg_embeds (b, dim), not L2-normalised."""
        eeg = (eeg.to(self.channel_mean.dtype) - self.channel_mean[:, None]) / self.channel_std[:, None]
        return self.encoder(eeg, subject)
