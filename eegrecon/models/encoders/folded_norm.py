"""Batch normalisation between two linear maps, without computing what it normalises.

The statistics of a convolution's output follow from the mean and covariance of its input over rows (250 x 250 numbers
instead of millions), so that the normalisation becomes part of the kernel and the two maps around it become one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

OverRanks = Callable[[Tensor], Tensor] | None  # the differentiable mean over all ranks; None in a single process


def conv_moments(rows: Tensor, kernel: Tensor, n_out: int, stride: int, over_ranks: OverRanks) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance (filters,) of the rows convolved with every filter, over rows and output samples.

    With `a_t` the kernel placed at output sample t: output variance = mean over t of `a_t' Cov a_t` plus the variance
    over t of `a_t' mean`. Both terms are sums of squares, so nothing cancels.

    Args:
        rows: (n, n_times), padded already if the convolution pads.
        kernel: (filters, taps).
        n_out: output samples of a row.
        stride: of the convolution.
        over_ranks: see `OverRanks`.
    """
    rows = rows.to(kernel.dtype)
    mean_of = over_ranks or (lambda value: value)
    centre = mean_of(rows.mean(0))
    centred = rows - centre
    cov = mean_of(centred.T @ centred / rows.shape[0])
    # As views: every output sample sees one diagonal block of the covariance, and only their sum is needed.
    size, last = kernel.shape[1], stride * (n_out - 1)
    block = torch.stack([cov[s : s + size, s : s + size] for s in range(0, last + 1, stride)]).mean(0)
    level = kernel @ centre[: last + size].unfold(0, size, stride).T  # (filters, n_out)
    mean = level.mean(1)
    return mean, ((kernel @ block) * kernel).sum(1) + (level - mean[:, None]).square().mean(1)


@torch.no_grad()
def update_running(
    norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, var: Tensor, count: int, over_ranks: OverRanks
) -> None:
    """What `norm` would have done to its running statistics on seeing `count` values a filter on every rank."""
    if over_ranks is not None:
        count *= torch.distributed.get_world_size()
    if norm.num_batches_tracked is None or norm.running_mean is None or norm.running_var is None:
        return
    rate = norm.momentum if norm.momentum is not None else 1.0 / (float(norm.num_batches_tracked) + 1)
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean.detach(), rate)
    norm.running_var.lerp_(var.detach() * (count / (count - 1)), rate)
