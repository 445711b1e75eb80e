"""Retrieval from a similarity matrix, with exact expectations where chance decides, and its intervals."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor
from torch.nn import functional as F

from eegrecon.metrics.functional.identification import clopper_pearson


class RetrievalScores(NamedTuple):
    """N of the N-way task, top-1 and top-5 in [0, 1] (chance 1/N and 5/N), and the number of queries."""

    n_way: int
    top1: float
    top5: float
    n_queries: int


def _ranks(similarity: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How many gallery entries beat the target, and how many others tie with it: two (q,) float64 tensors."""
    if similarity.ndim != 2 or target.shape != similarity.shape[:1]:
        shapes = f"{tuple(similarity.shape)} and {tuple(target.shape)}"
        raise ValueError(f"similarity must be (q, g) and target (q,), got {shapes}")
    if not torch.isfinite(similarity).all():
        raise ValueError("similarity holds NaN or infinite values: the embeddings have diverged")
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < similarity.shape[1]:
        raise ValueError(f"target points outside the gallery of {similarity.shape[1]}")
    own = similarity.gather(1, target.long()[:, None])
    better = (similarity > own).sum(1)
    ties = (similarity == own).sum(1) - 1
    return better.double(), ties.double()


def topk_retrieval(similarity: Float[Tensor, "..."], target: Int[Tensor, "..."], k: int) -> Float64[Tensor, " q"]:
    """Whether the target is among the k most similar of the gallery, tied entries in random order.

    Ties give the exact expectation of random tie-breaking, so a constant similarity scores k/g (chance) and not 1.

    Args:
        similarity: (q, g), larger is more similar.
        target: (q,) int, the target's column.
        k: at least 1.

    Returns:
        (q,) float64 in [0, 1]; 0 or 1 where nothing ties.

    Raises:
        ValueError: shapes do not fit, a target lies outside the gallery, or similarities are not finite.

    >>> topk_retrieval(torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5]]), torch.tensor([0, 2]), k=1).tolist()
    [1.0, 0.0]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    better, ties = _ranks(similarity, target)
    return ((k - better) / (ties + 1)).clamp(0, 1)


def retrieval_kway(
    similarity: Float[Tensor, "..."], target: Int[Tensor, "..."], k_way: int, k: int = 1
) -> Float64[Tensor, " q"]:
    """Probability that the target is among the top k of itself and `k_way - 1` random others of the gallery.

    The exact expectation over all distractor sets (hypergeometric), not a simulation: the target is found when at most
    k - 1 of the drawn distractors beat it. At `k_way = g` this is `topk_retrieval`.

    Args:
        similarity: (q, g).
        target: (q,) int.
        k_way: size of each small gallery, 2…g.
        k: at least 1.

    Returns:
        (q,) float64 in [0, 1].

    Raises:
        ValueError: as `topk_retrieval`, or `k_way` does not fit the gallery.
    """
    better, ties = _ranks(similarity, target)
    others = similarity.shape[1] - 1
    if not 2 <= k_way <= others + 1 or k < 1:
        raise ValueError(f"k_way must be 2…{others + 1} and k at least 1, got {k_way} and {k}")
    total = torch.zeros_like(better)
    # In a random order of the tied entries, 0…ties of them come first, each equally likely.
    for first in range(int(ties.max()) + 1 if len(ties) else 0):
        found = _hypergeometric_cdf(k - 1, others, better + first, k_way - 1)
        total += torch.where(first <= ties, found, 0.0)
    return total / (ties + 1)


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


def concept_retrieval(
    eeg_embeds: Float[Tensor, "n dim"],
    image_embeds: Float[Tensor, "n dim"],
    image_index: Int[Tensor, " n"],
    concept_index: Int[Tensor, " n"],
) -> RetrievalScores:
    """N-way retrieval of the seen picture among one picture per concept, by cosine, N the number of concepts.

    Where every concept has one picture (the 200-way test of THINGS-EEG2), this is `topk_retrieval` over the whole set.
    Where concepts have several (validation: ten), there are several galleries: the first picture of every concept, the
    second, and so on; every trial is looked for in the gallery of its own picture and all trials are averaged. N does
    not depend on the number of pictures, and ten galleries are about three times steadier than one. Galleries in which
    some concept has no picture are left out.

    Args:
        eeg_embeds: (n, dim), one row a trial, each trial once.
        image_embeds: (n, dim), the embedding of the picture seen in that trial.
        image_index: (n,) int.
        concept_index: (n,) int.

    Raises:
        ValueError: no gallery holds a picture of every concept, or embeddings are not finite.
    """
    eeg, image = (F.normalize(value.double(), dim=1) for value in (eeg_embeds, image_embeds))
    pictures = first_rows(image_index[:, None])  # sorted by image_index
    concepts, concept_of = torch.unique(concept_index[pictures], return_inverse=True)
    # Rank of a picture among the pictures of its concept, in THINGS order: the gallery it belongs to.
    rank = torch.zeros_like(concept_of)
    for concept in range(len(concepts)):
        mine = concept_of == concept
        rank[mine] = torch.arange(int(mine.sum()), device=rank.device)
    top1, top5 = [], []
    for gallery in range(int(rank.max()) + 1):
        members = pictures[rank == gallery]
        if len(members) < len(concepts):
            continue
        queries = torch.isin(image_index, image_index[members])
        similarity = eeg[queries] @ image[members].T
        target = torch.searchsorted(image_index[members], image_index[queries])
        top1.append(topk_retrieval(similarity, target, 1))
        top5.append(topk_retrieval(similarity, target, 5))
    if not top1:
        raise ValueError("retrieval needs at least one picture of every concept")
    first, five = torch.cat(top1), torch.cat(top5)
    return RetrievalScores(len(concepts), float(first.mean()), float(five.mean()), len(first))


def first_rows(keys: Int[Tensor, "n k"]) -> Int64[Tensor, " unique"]:
    """Positions of the first occurrence of every row of an int matrix (n, k), in the order of the sorted rows.

    >>> first_rows(torch.tensor([[7], [3], [7], [5]])).tolist()
    [1, 3, 0]
    """
    _, inverse = torch.unique(keys, dim=0, return_inverse=True)
    n = int(inverse.max()) + 1
    first = torch.full((n,), len(keys), device=keys.device)
    return first.scatter_reduce(0, inverse, torch.arange(len(keys), device=keys.device), "amin")


def binomial_interval(
    successes: float, n: int, confidence: float = 0.95, method: str = "wilson"
) -> tuple[float, float]:
    """Interval of a success probability.

    Args:
        successes: number of successes; a sum of expected hits may be fractional.
        n: number of trials, at least 1.
        confidence: such as 0.95.
        method: "wilson" (Wilson 1927, score interval) or "clopper_pearson" (1934, never too narrow).

    Returns:
        (low, high) in [0, 1].

    Raises:
        ValueError: the numbers are no proportion, or the method is unknown.

    >>> [round(bound, 4) for bound in binomial_interval(5, 10)]
    [0.2366, 0.7634]
    """
    from scipy.stats import norm

    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"no proportion: {successes} of {n} at confidence {confidence}")
    if method == "wilson":
        z = float(norm.ppf((1 + confidence) / 2))
        rate, weight = successes / n, z * z / n
        centre = (rate + weight / 2) / (1 + weight)
        half = z * math.sqrt(rate * (1 - rate) / n + weight / (4 * n)) / (1 + weight)
        return max(0.0, centre - half), min(1.0, centre + half)
    if method == "clopper_pearson":
        return clopper_pearson(successes, n, confidence)
    raise ValueError(f"method must be wilson or clopper_pearson, got {method!r}")
