"""Where the seen picture came for every query: what every retrieval number is computed from, kept in one small file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eegrecon.artifacts import atomic_write
from eegrecon.errors import ArtifactError
from eegrecon.metrics.functional.ranking import (
    kway_drawn,
    kway_from_counts,
    rank_counts,
    reciprocal_rank,
    target_rank,
)
from eegrecon.metrics.functional.retrieval import concept_ranks

NAMES = ("image_index", "subject", "better", "ties")


@dataclass(frozen=True, eq=False)
class QueryRanks:
    """One retrieval task: each query looks for its own picture in a gallery.

    Zero-shot classification is the same with the names of concepts as gallery.

    Attributes:
        image_index: (q,) int64, the picture each query saw.
        subject: (q,) int64.
        better: (q,) int64, gallery entries that are more similar than the seen picture.
        ties: (q,) int64, other entries that are as similar.
        gallery: Number of entries.
    """

    image_index: Tensor
    subject: Tensor
    better: Tensor
    ties: Tensor
    gallery: int

    def kway(self, k_way: int, k: int = 1) -> Tensor:
        """(q,) float64: probability of being among the top k of itself and `k_way` - 1 random others of the gallery."""
        return kway_from_counts(self.better, self.ties, self.gallery, k_way, k)

    def kway_drawn(self, k_way: int, k: int = 1, *, draws: int = 1, seed: int = 0) -> Tensor:
        """(q,) float64: the same by drawing distractors, as published numbers were made."""
        return kway_drawn(self.better, self.ties, self.gallery, k_way, k, draws=draws, seed=seed)

    def rank(self) -> Tensor:
        """(q,) float64 from 1: expected over a random order of the tied."""
        return target_rank(self.better, self.ties)

    def reciprocal_rank(self) -> Tensor:
        """(q,) float64 in (0, 1]: 1 / rank, expected over a random order of the tied."""
        return reciprocal_rank(self.better, self.ties)


def query_ranks(similarity: Tensor, target: Tensor, image_index: Tensor, subject: Tensor) -> QueryRanks:
    """Count, for every query, what comes before its target.

    Args:
        similarity: (q, g), larger is more similar.
        target: (q,) the column of the seen picture.
        image_index: (q,).
        subject: (q,).

    Raises:
        ValueError: A similarity is not finite, or shapes do not fit.
    """
    better, ties = rank_counts(similarity, target)
    return QueryRanks(image_index.long(), subject.long(), better, ties, similarity.shape[1])


def concept_query_ranks(
    eeg_embeds: Tensor, image_embeds: Tensor, image_index: Tensor, concept_index: Tensor, subject: Tensor
) -> QueryRanks:
    """Ranks among one picture per concept, as validation is scored (`metrics.functional.retrieval.concept_ranks`).

    Args:
        eeg_embeds: (n, dim), one row a trial.
        image_embeds: (n, dim) of the seen pictures.
        image_index: (n,).
        concept_index: (n,).
        subject: (n,).

    Returns:
        One query a trial of a complete gallery; `gallery` is the number of concepts.

    Raises:
        ValueError: No gallery holds a picture of every concept, or embeddings are not finite.
    """
    found = concept_ranks(eeg_embeds, image_embeds, image_index, concept_index)
    row = found.row
    return QueryRanks(image_index[row].long(), subject[row].long(), found.better, found.ties, found.n_way)


def save_ranks(path: Path, ranks: QueryRanks) -> None:
    """Write one task as safetensors: the four columns int32, and `gallery` (1,) int32."""
    from safetensors.torch import save

    columns = {name: getattr(ranks, name).int().contiguous() for name in NAMES}
    with atomic_write(path) as file:
        file.write(save({**columns, "gallery": torch.tensor([ranks.gallery], dtype=torch.int32)}))


def load_ranks(path: Path) -> QueryRanks:
    """Read what `save_ranks` wrote.

    Raises:
        ArtifactError: The file is missing, unreadable or lacks a column.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
        columns = {name: found[name].long() for name in NAMES}
        return QueryRanks(**columns, gallery=int(found["gallery"][0]))
    except (OSError, SafetensorError, KeyError) as error:
        raise ArtifactError(f"The ranks {path} cannot be read ({error}): run `eegrecon evaluate` again.") from error
