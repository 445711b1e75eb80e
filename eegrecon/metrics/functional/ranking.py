"""Retrieval numbers from two counts per query: how many gallery entries beat the target, and how many tie with it.

Everything that cosine retrieval among a gallery can be asked is a function of these counts, so they are what is kept.
Tied entries come in random order: every function gives the exact expectation over that order, so that embeddings
without information score chance and not 1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Int, Int64, Real
from torch import Tensor

SUMMED = 16  # units in the last place that sums of the same terms, in other orders, may lie apart
HALF = (torch.float16, torch.bfloat16)


def rank_counts(
    similarity: Real[Tensor, ...], target: Int[Tensor, ...]
) -> tuple[Int64[Tensor, " q"], Int64[Tensor, " q"]]:
    """How many gallery entries are more similar than the target, and how many others are as similar.

    Matrix products round each column in their own way, and differently from one processor to the next, so similarities
    count as equal up to 16 units in the last place of what was summed. For a product of unit vectors that is a share of
    1, however small the cosine; for other numbers at least a share of the larger of the two that are compared. So the
    unit is that of the larger one, or of the row's largest up to 1 where that is more: a large entry elsewhere in the
    row makes nothing equal. Half precision (float16, bfloat16) holds sums that were made in float32 and rounded once
    more at the end: there one unit of the half type is added, of the larger of the two. Integers are exact.

    Args:
        similarity: (q, g), larger is more similar.
        target: (q,) int, the target's column.

    Returns:
        better (q,) and ties (q,), int64.

    Raises:
        ValueError: Shapes do not fit, a target lies outside the gallery, or similarities are not finite.

    >>> better, ties = rank_counts(torch.tensor([[0.5, 0.9, 0.5], [0.5, 0.9, 0.5]]), torch.tensor([0, 1]))
    >>> better.tolist(), ties.tolist()
    ([1, 0], [1, 0])
    """
    if similarity.ndim != 2 or target.shape != similarity.shape[:1]:
        shapes = f"{tuple(similarity.shape)} and {tuple(target.shape)}"
        raise ValueError(f"similarity must be (q, g) and target (q,), got {shapes}")
    if not torch.isfinite(similarity).all():
        raise ValueError("similarity holds NaN or infinite values: the embeddings have diverged")
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < similarity.shape[1]:
        raise ValueError(f"target points outside the gallery of {similarity.shape[1]}")
    given, similarity = similarity.dtype, similarity.double()
    own = similarity.gather(1, target.long()[:, None])
    larger = torch.maximum(similarity.abs(), own.abs())
    rounding = SUMMED * _epsilon(given) * torch.maximum(larger, similarity.abs().amax(1, keepdim=True).clamp(max=1))
    if given in HALF:
        rounding += torch.finfo(given).eps * larger
    ahead = similarity - own
    return (ahead > rounding).sum(1), (ahead.abs() <= rounding).sum(1) - 1


def _epsilon(dtype: torch.dtype) -> float:
    """Of the type in which similarities of this type were summed."""
    if not dtype.is_floating_point:
        return 0.0
    return float(torch.finfo(torch.float32 if dtype in HALF else dtype).eps)


def target_rank(better: Int[Tensor, " q"], ties: Int[Tensor, " q"]) -> Float64[Tensor, " q"]:
    """Rank of the target from 1 (best) to g, the mean over the order of the tied; chance (g + 1) / 2."""
    return 1 + better.double() + ties.double() / 2


def reciprocal_rank(better: Int[Tensor, " q"], ties: Int[Tensor, " q"]) -> Float64[Tensor, " q"]:
    """1 / rank in (0, 1], the mean over the order of the tied: with b better and t tied, (H(b+t+1) - H(b)) / (t+1).

    H is the harmonic number; its mean over queries is the MRR, by chance H(g) / g.
    """
    longest = int((better + ties).max()) + 1 if len(better) else 0
    terms = 1 / torch.arange(1, longest + 1, dtype=torch.float64, device=better.device)
    harmonic = torch.cat([terms.new_zeros(1), terms.cumsum(0)])
    return (harmonic[(better + ties).long() + 1] - harmonic[better.long()]) / (ties + 1)


def topk_from_counts(better: Int[Tensor, " q"], ties: Int[Tensor, " q"], k: int) -> Float64[Tensor, " q"]:
    """Probability in [0, 1] that the target is among the first k, over the order of the tied; chance k / g."""
    return ((k - better.double()) / (ties + 1)).clamp(0, 1)


def kway_from_counts(
    better: Int[Tensor, " q"], ties: Int[Tensor, " q"], gallery: int, k_way: int, k: int = 1
) -> Float64[Tensor, " q"]:
    """Probability that the target is among the top k of itself and `k_way - 1` random others of the gallery.

    The exact expectation over all distractor sets (hypergeometric), not a simulation: the target is found when at most
    k - 1 of the drawn distractors beat it. At `k_way = gallery` this is plain top-k.

    Args:
        better: (q,) of `rank_counts`.
        ties: (q,) of `rank_counts`.
        gallery: Number of entries g, the target among them.
        k_way: Size of each small gallery, 2…g.
        k: At least 1.

    Returns:
        (q,) in [0, 1].

    Raises:
        ValueError: `k_way` or k does not fit the gallery.
    """
    _check_kway(gallery, k_way, k)
    if k_way == gallery:  # nothing is drawn, and nothing rounded
        return topk_from_counts(better, ties, k)
    others = gallery - 1
    total = torch.zeros(better.shape, dtype=torch.float64, device=better.device)
    # In a random order of the tied entries, 0…ties of them come first, each equally likely.
    for first in range(int(ties.max()) + 1 if len(ties) else 0):
        found = _hypergeometric_cdf(k - 1, others, better.double() + first, k_way - 1)
        total += torch.where(first <= ties, found, 0.0)
    return total / (ties + 1)


def kway_drawn(
    better: Int[Tensor, " q"],
    ties: Int[Tensor, " q"],
    gallery: int,
    k_way: int,
    k: int = 1,
    *,
    draws: int = 1,
    seed: int = 0,
) -> Float64[Tensor, " q"]:
    """The same by drawing distractors, as published numbers were made: a sample of `kway_from_counts`.

    EEG_Image_decode draws `k_way - 1` other concepts per query with `random.sample`, once, without a seed, again at
    every epoch (facts/atm.md section 2.6). `draws=1` is that, with a seed; its standard error over 200 queries is up
    to 3.5 points, which is why it is no default. Ties are broken at random, where the official argmax depends on the
    order of the columns.

    Args:
        better: (q,) of `rank_counts`.
        ties: (q,) of `rank_counts`.
        gallery: Number of entries g.
        k_way: Size of each small gallery, 2…g.
        k: At least 1.
        draws: Distractor sets per query, at least 1; their mean is returned.
        seed: Of the draws.

    Returns:
        (q,) in [0, 1], multiples of 1 / draws.

    Raises:
        ValueError: `k_way`, k or draws does not fit.
    """
    _check_kway(gallery, k_way, k)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    generator = torch.Generator().manual_seed(seed)
    q, others = len(better), gallery - 1
    better, ties = better.cpu(), ties.cpu()
    hits = torch.zeros(q, dtype=torch.float64)
    for _ in range(draws):
        # Only who wins matters, so entries are numbered: those that beat the target, then the tied, then the rest.
        drawn = torch.rand(q, others, generator=generator).argsort(1)[:, : k_way - 1]
        # Of the tied, those before the target's own random place win.
        place = (torch.rand(q, generator=generator, dtype=torch.float64) * (ties + 1)).long()
        hits += ((drawn < (better + place)[:, None]).sum(1) < k).double()
    return hits / draws


def _check_kway(gallery: int, k_way: int, k: int) -> None:
    if not 2 <= k_way <= gallery or k < 1:
        raise ValueError(f"k_way must be 2…{gallery} and k at least 1, got {k_way} and {k}")


def _hypergeometric_cdf(most: int, population: int, marked: Float64[Tensor, " q"], drawn: int) -> Float64[Tensor, " q"]:
    """P(at most `most` of `drawn` drawn from `population` are among the `marked` (q,))."""

    def log_choose(n: Tensor, r: int) -> Tensor:
        possible = n >= r
        n = n.clamp(min=r)
        value = torch.lgamma(n + 1) - math.lgamma(r + 1) - torch.lgamma(n - r + 1)
        return torch.where(possible, value, -torch.inf)

    marked = marked.clamp(max=population)
    everything = log_choose(torch.full_like(marked, population), drawn)
    total = torch.zeros_like(marked)
    for hits in range(min(most, drawn) + 1):
        total += torch.exp(log_choose(marked, hits) + log_choose(population - marked, drawn - hits) - everything)
    return total.clamp(max=1)
