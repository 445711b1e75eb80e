"""Exact paired comparison of two methods over subjects."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Num
from torch import Tensor

LARGEST = 200  # pairs; the exact distribution of more would take minutes, and no data set has them


class PairedTest(NamedTuple):
    """Wilcoxon signed-rank test.

    Attributes:
        n: Pairs, those that are equal included.
        n_different: Pairs that differ, on which the test rests.
        statistic: Sum of the ranks of positive differences.
        p: Two-sided exact p value.
        floor: The smallest p that so many different pairs can give, 2 / 2**n_different (1 for none).
    """

    n: int
    n_different: int
    statistic: float
    p: float
    floor: float


def paired_wilcoxon(first: Num[Tensor, ...], second: Num[Tensor, ...]) -> PairedTest:
    """Two-sided Wilcoxon signed-rank test of `first` - `second`, exact with ties too.

    Under the null hypothesis every difference is as likely to be positive as negative (Wilcoxon 1945). The exact
    distribution of the rank sum over all 2**n signs is counted by adding one pair after another, with mean ranks for
    differences of equal size, and pairs without difference left out as Wilcoxon did. With n subjects p cannot be below
    2 / 2**n: .00195 for 10, .125 for 4, so that fewer than 6 subjects never reach .05, whatever the effect.

    Args:
        first: (n,) one value a subject.
        second: (n,) of the same subjects in the same order.

    Raises:
        ValueError: Shapes differ, values are not finite, or there are no or more than `LARGEST` pairs.

    >>> paired_wilcoxon(torch.arange(1, 11), torch.zeros(10)).p
    0.001953125
    """
    if first.ndim != 1 or first.shape != second.shape or not 1 <= len(first) <= LARGEST:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"paired_wilcoxon needs two vectors of one length, 1…{LARGEST}, got {shapes}")
    difference = first.double() - second.double()
    if not torch.isfinite(difference).all():
        raise ValueError("paired_wilcoxon needs finite values")
    # Means over hundreds of queries that are equal on paper differ in their last bits.
    scale = float(torch.stack([first.double().abs().max(), second.double().abs().max()]).max())
    difference = torch.where(difference.abs() <= 1e-12 * scale, 0.0, difference)
    size = difference[difference != 0].abs()
    n = len(size)
    if n == 0:
        return PairedTest(len(first), 0, 0.0, 1.0, 1.0)
    tied = (size[:, None] - size[None]).abs() <= 1e-9 * size.max()
    below = ((size[:, None] > size[None]) & ~tied).sum(1)
    twice = 2 * below + tied.sum(1) + 1  # twice the mean rank: a whole number
    # counts[s]: in how many of the 2**n choices of signs the doubled ranks of the positive ones add to s
    counts = [1] + [0] * int(twice.sum())
    for rank in twice.tolist():
        counts = [count + (counts[s - rank] if s >= rank else 0) for s, count in enumerate(counts)]
    observed = int(twice[difference[difference != 0] > 0].sum())
    low, high = sum(counts[: observed + 1]), sum(counts[observed:])
    return PairedTest(len(first), n, observed / 2, min(1.0, 2 * min(low, high) / 2**n), 2 / 2**n)
