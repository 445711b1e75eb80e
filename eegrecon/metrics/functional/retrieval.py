"""Retrieval from a similarity matrix, with exact expectations where chance decides."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int, Int64, Real
from torch import Tensor
from torch.nn import functional as F

from eegrecon.metrics.functional.ranking import kway_from_counts, rank_counts, topk_from_counts


class RetrievalScores(NamedTuple):
    """N of the N-way task, top-1 and top-5 in [0, 1] (chance 1/N and 5/N), and the number of queries."""

    n_way: int
    top1: float
    top5: float
    n_queries: int


class ConceptRanks(NamedTuple):
    """Counts behind `RetrievalScores`: N, the rows that are queries (q,), and their `rank_counts` (q,) each."""

    n_way: int
    row: Tensor
    better: Tensor
    ties: Tensor


def topk_retrieval(similarity: Real[Tensor, "..."], target: Int[Tensor, "..."], k: int) -> Float64[Tensor, " q"]:
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
    better, ties = rank_counts(similarity, target)
    return topk_from_counts(better, ties, k)


def retrieval_kway(
    similarity: Real[Tensor, "..."], target: Int[Tensor, "..."], k_way: int, k: int = 1
) -> Float64[Tensor, " q"]:
    """Probability that the target is among the top k of itself and `k_way - 1` random others of the gallery.

    See `ranking.kway_from_counts`. At `k_way = g` this is `topk_retrieval`.

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
    better, ties = rank_counts(similarity, target)
    return kway_from_counts(better, ties, similarity.shape[1], k_way, k)


def concept_ranks(
    eeg_embeds: Float[Tensor, "n dim"],
    image_embeds: Float[Tensor, "n dim"],
    image_index: Int[Tensor, " n"],
    concept_index: Int[Tensor, " n"],
) -> ConceptRanks:
    """Where the seen picture comes among one picture per concept, by cosine; the counts behind `concept_retrieval`.

    Args:
        eeg_embeds: (n, dim), one row a trial, each trial once.
        image_embeds: (n, dim), the embedding of the picture seen in that trial.
        image_index: (n,) int.
        concept_index: (n,) int.

    Returns:
        Gallery by gallery; rows of incomplete galleries are left out.

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
    rows, counts = [], []
    for gallery in range(int(rank.max()) + 1):
        members = pictures[rank == gallery]
        if len(members) < len(concepts):
            continue
        queries = torch.isin(image_index, image_index[members]).nonzero()[:, 0]
        target = torch.searchsorted(image_index[members], image_index[queries])
        rows.append(queries)
        counts.append(rank_counts(eeg[queries] @ image[members].T, target))
    if not rows:
        raise ValueError("retrieval needs at least one picture of every concept")
    better, ties = (torch.cat(values) for values in zip(*counts, strict=True))
    return ConceptRanks(len(concepts), torch.cat(rows), better, ties)


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
    ranks = concept_ranks(eeg_embeds, image_embeds, image_index, concept_index)
    top1, top5 = (float(topk_from_counts(ranks.better, ranks.ties, k).mean()) for k in (1, 5))
    return RetrievalScores(ranks.n_way, top1, top5, len(ranks.row))


def first_rows(keys: Int[Tensor, "n k"]) -> Int64[Tensor, " unique"]:
    """Positions of the first occurrence of every row of an int matrix (n, k), in the order of the sorted rows.

    >>> first_rows(torch.tensor([[7], [3], [7], [5]])).tolist()
    [1, 3, 0]
    """
    _, inverse = torch.unique(keys, dim=0, return_inverse=True)
    n = int(inverse.max()) + 1
    first = torch.full((n,), len(keys), device=keys.device)
    return first.scatter_reduce(0, inverse, torch.arange(len(keys), device=keys.device), "amin")
