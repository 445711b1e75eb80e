"""Retrieval over a whole split, as a torchmetrics metric."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from eegrecon.metrics.functional.retrieval import RetrievalScores, concept_retrieval, first_rows

_STATES = ("eeg_embeds", "image_embeds", "image_index", "concept_index", "subject", "repetition")


class Retrieval(Metric):
    """`concept_retrieval` over everything that all ranks have seen.

    Ids travel with the embeddings: a (subject, picture, repetition) that occurs twice, as a distributed sampler pads it
    in, counts once.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        for name in _STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        eeg_embeds: Tensor,
        image_embeds: Tensor,
        image_index: Tensor,
        concept_index: Tensor,
        subject: Tensor,
        repetition: Tensor,
    ) -> None:
        """Adds a batch: two (b, dim) and four (b,) int tensors; `repetition` is -1 where repetitions were averaged."""
        ids = (image_index, concept_index, subject, repetition)
        rows = [eeg_embeds.detach().float(), image_embeds.detach().float(), *(value.detach().long() for value in ids)]
        for name, value in zip(_STATES, rows, strict=True):
            getattr(self, name).append(value)

    def compute(self) -> RetrievalScores:
        """Scores over everything seen (see `concept_retrieval`)."""
        rows = unique_trials({name: dim_zero_cat(getattr(self, name)) for name in _STATES})
        return concept_retrieval(*(rows[name] for name in _STATES[:4]))


def unique_trials(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every (subject, image_index, repetition) once, sorted by it: {name: (n, ...)} -> {name: (m, ...)}, m <= n."""
    keep = first_rows(torch.stack([rows["subject"], rows["image_index"], rows["repetition"]], dim=1).long())
    return {name: value[keep] for name, value in rows.items()}
