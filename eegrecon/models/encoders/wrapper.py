"""What `model.safetensors` of stage 1 holds: input normalisation, encoder, what stands beside it, and temperature."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class AlignedEncoder(nn.Module):
    """An EEG encoder that takes EEG as the trial store holds it, with what the losses need beside it.

    State: `encoder.*`, `channel_mean`, `channel_std`, `logit_scale` and, where there are any, `latent_head.*`,
    `image_projection.*`, `known_subjects`, `logit_bias`.

    Args:
        encoder: `forward(eeg (b, n_chans, n_times), subject (b,)) -> (b, dim)`.
        latent_head: `forward(eeg_embeds (b, dim)) -> (b, *latent_shape)`, or None.
        channel_mean: (n_chans,) mean of the training trials, in the store's unit (µV, or unitless after MVNN).
        channel_std: (n_chans,) standard deviation of the training trials, positive.
        image_projection: `forward(image_embeds (b, target_dim)) -> (b, dim)`, or None: the two spaces are one.
        known_subjects: ids (from 1) of the subjects that are trained on. The encoder sees every other id as 0, the
            unknown subject. None: ids pass as they are.
        logit_scale: initial value of the parameter; how it is used is the loss's business.
        logit_bias: initial value of SigLIP's bias; None: there is none.
        learn_logit_scale: whether scale and bias are trained.

    Raises:
        ValueError: a standard deviation is not positive, the two shapes differ, or a subject id is below 1.
    """

    channel_mean: Tensor
    channel_std: Tensor
    known_subjects: Tensor | None
    logit_bias: nn.Parameter | None

    def __init__(
        self,
        encoder: nn.Module,
        latent_head: nn.Module | None,
        channel_mean: Tensor,
        channel_std: Tensor,
        *,
        image_projection: nn.Module | None = None,
        known_subjects: Sequence[int] | None = None,
        # 0.07 is ATM's and CLIP's initial temperature (Radford et al. 2021).
        logit_scale: float = math.log(1 / 0.07),
        logit_bias: float | None = None,
        learn_logit_scale: bool = True,
    ) -> None:
        super().__init__()
        if channel_mean.shape != channel_std.shape or channel_mean.ndim != 1:
            shapes = f"{tuple(channel_mean.shape)} and {tuple(channel_std.shape)}"
            raise ValueError(f"channel_mean and channel_std must both be (n_chans,), got {shapes}")
        if not bool((channel_std > 0).all()):
            dead = torch.nonzero(~(channel_std > 0)).flatten().tolist()
            raise ValueError(f"channel_std must be positive, but channels {dead} are constant in the training trials")
        if known_subjects is not None and min(known_subjects, default=1) < 1:
            raise ValueError(f"known_subjects must be ids from 1 (0 is the unknown subject), got {known_subjects}")
        self.encoder = encoder
        self.latent_head = latent_head
        self.image_projection = image_projection
        self.register_buffer("channel_mean", channel_mean.detach().clone().float())
        self.register_buffer("channel_std", channel_std.detach().clone().float())
        known = None if known_subjects is None else torch.tensor(sorted(known_subjects), dtype=torch.int64)
        self.register_buffer("known_subjects", known)
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)), requires_grad=learn_logit_scale)
        bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)), learn_logit_scale)
        self.register_parameter("logit_bias", bias)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """EEG (b, n_chans, n_times) in the store's unit, subject (b,) int -> eeg_embeds (b, dim), not L2-normalised."""
        eeg = standardised(eeg, self.channel_mean, self.channel_std)
        if self.known_subjects is not None:
            subject = known_or_zero(subject, self.known_subjects)
        return self.encoder(eeg, subject)

    def project_images(self, image_embeds: Float[Tensor, "b target_dim"]) -> Float[Tensor, "b dim"]:
        """Image embeddings as the target store holds them -> the space of `forward`, (b, dim)."""
        return image_embeds if self.image_projection is None else self.image_projection(image_embeds)


def standardised(
    eeg: Float[Tensor, "b n_chans n_times"], mean: Float[Tensor, " n_chans"], std: Float[Tensor, " n_chans"]
) -> Float[Tensor, "b n_chans n_times"]:
    """EEG in the store's unit with each channel's training mean taken away, in units of its standard deviation."""
    return (eeg.to(mean.dtype) - mean[:, None]) / std[:, None]


def known_or_zero(subject: Int[Tensor, " b"], known: Int[Tensor, " n"]) -> Int[Tensor, " b"]:
    """Subject ids, those that are not known turned into 0, the stranger.

    >>> known_or_zero(torch.tensor([2, 3]), torch.tensor([1, 2])).tolist()
    [2, 0]
    """
    return torch.where((subject[:, None] == known).any(1), subject, torch.zeros_like(subject))
