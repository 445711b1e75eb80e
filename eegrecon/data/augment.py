"""What may be done to training trials, as functions of trials and random numbers; all off by default.

Random numbers come in as arguments: who calls decides that a row gets the same ones whatever the number of processes.
Averages of k random trials, another augmentation of the field, are the data's business (`data.repetitions`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """How much of each.

    Attributes:
        time_shift: Largest shift in samples, either way; the border's sample fills what becomes free.
        channel_dropout: Probability that a channel of a trial is replaced by its mean over the training trials.
        noise: Standard deviation of white noise, relative to the channel's.
        mixup: alpha of the Beta(alpha, alpha) by which two neighbouring rows are mixed (Zhang et al. 2018); 0: off.
    """

    time_shift: int = 0
    channel_dropout: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0

    @property
    def is_off(self) -> bool:
        """Whether nothing is done."""
        return self == Augment()


def shift_in_time(eeg: Float[Tensor, "b chans times"], shift: Int[Tensor, " b"]) -> Float[Tensor, "b chans times"]:
    """Move each trial by its number of samples, later if positive; the border's sample is repeated."""
    n_times = eeg.shape[-1]
    source = (torch.arange(n_times, device=eeg.device) - shift[:, None]).clamp(0, n_times - 1)
    return eeg.gather(2, source[:, None].expand(-1, eeg.shape[1], -1))


def drop_channels(
    eeg: Float[Tensor, "b chans times"],
    uniform: Float[Tensor, "b chans"],
    probability: float,
    mean: Float[Tensor, " chans"],
) -> Float[Tensor, "b chans times"]:
    """Replace a channel of a trial by its mean where its number lies below the probability."""
    dropped = uniform[..., None] < probability
    return torch.where(dropped, mean[:, None].to(eeg.dtype), eeg)


def mix(value: Float[Tensor, "b ..."], share: Float[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """`share` of each row and the rest of its neighbour: rows 0 and 1, 2 and 3, …; a last odd row stays."""
    weight = share.view(-1, *[1] * (value.ndim - 1)).to(value.dtype)
    return weight * value + (1 - weight) * value[neighbours(len(value), value.device)]


def neighbours(b: int, device: torch.device | None = None) -> Int[Tensor, " b"]:
    """The row that each row is mixed with, (b,): itself for a last odd one.

    >>> neighbours(5).tolist()
    [1, 0, 3, 2, 4]
    """
    index = torch.arange(b, device=device)
    other = index ^ 1
    return torch.where(other < b, other, index)


def mixup_shares(uniform: Float[Tensor, " b"], alpha: float) -> Float[Tensor, " b"]:
    """From uniform numbers to shares by Beta(alpha, alpha), one for both rows of a pair, (b,) in [0, 1].

    Args:
        uniform: (b,) in [0, 1); a pair takes that of its first row.
        alpha: above 0.
    """
    from scipy.special import betaincinv

    first = torch.arange(len(uniform)) // 2 * 2
    share = torch.from_numpy(betaincinv(alpha, alpha, uniform[first].double().numpy()))
    return share.to(uniform.dtype)
