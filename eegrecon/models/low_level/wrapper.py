"""What `model.safetensors` of the low-level pathway holds: scaling of EEG and latents around a network."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.models.encoders.wrapper import known_or_zero, standardised


class LowLevelDecoder(nn.Module):
    """EEG as the trial store holds it -> latents in the target store's scale (times the VAE's scaling_factor).

    State: `network.*`, `channel_mean`, `channel_std`, `latent_mean`, `latent_std`, `gain`, `known_subjects`.

    Args:
        network: `forward(eeg (b, n_chans, n_times), subject (b,)) -> (b, *latent_shape)`.
        channel_mean: (n_chans,) mean of the training trials, in the store's unit (µV, or unitless after MVNN).
        channel_std: (n_chans,) likewise, positive.
        latent_mean: (c, h, w) mean of the training pictures' latents: what a network that knows nothing should say.
        latent_std: (c, 1, 1) standard deviation of the latents around it, positive.
        known_subjects: ids (from 1) of the subjects that are trained on; the network sees every other id as 0.
        standardise: whether the network predicts standardised latents; else latents as they are (the paper).

    Raises:
        ValueError: a standard deviation is not positive.
    """

    channel_mean: Tensor
    channel_std: Tensor
    latent_mean: Tensor
    latent_std: Tensor
    gain: Tensor
    known_subjects: Tensor

    def __init__(
        self,
        network: nn.Module,
        channel_mean: Tensor,
        channel_std: Tensor,
        latent_mean: Tensor,
        latent_std: Tensor,
        *,
        known_subjects: Sequence[int],
        standardise: bool = True,
    ) -> None:
        super().__init__()
        for name, values in (("channel_std", channel_std), ("latent_std", latent_std)):
            if not bool((values > 0).all()):
                at = torch.nonzero(~(values.flatten() > 0)).flatten().tolist()
                raise ValueError(f"{name} must be positive, but channels {at} are constant in the training data")
        self.network, self.standardise = network, standardise
        moments = {"channel_mean": channel_mean, "channel_std": channel_std}
        moments |= {"latent_mean": latent_mean, "latent_std": latent_std, "gain": torch.ones_like(latent_std)}
        for name, values in moments.items():
            self.register_buffer(name, values.detach().clone().float())
        self.register_buffer("known_subjects", torch.tensor(sorted(known_subjects), dtype=torch.int64))

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """EEG (b, n_chans, n_times) in the store's unit, subject (b,) int -> scaled latents (b, c, h, w).

        `gain` (c, 1, 1), 1 unless variances were matched, stretches what differs from the mean latent.
        """
        eeg = standardised(eeg, self.channel_mean, self.channel_std)
        out = self.network(eeg, known_or_zero(subject, self.known_subjects))
        deviation = out * self.latent_std if self.standardise else out - self.latent_mean
        return self.latent_mean + self.gain * deviation
