"""torchmetrics shell around two-way identification."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from eegrecon.metrics.functional.identification import two_way_identification


class TwoWayIdentification(Metric):
    """Mean two-way identification over all pictures seen since `reset`, whatever the batches and ranks were.

    Picture ids travel with the features and duplicates (a distributed sampler pads with them) are dropped, so every
    picture counts once and is compared with every other.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    pred: list[Tensor]
    true: list[Tensor]
    index: list[Tensor]

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        for name in ("pred", "true", "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, pred_features: Tensor, true_features: Tensor, image_index: Tensor) -> None:
        """Add a batch.

        Args:
            pred_features: (b, d) features of reconstructions.
            true_features: (b, d) features of the seen pictures.
            image_index: (b,) integer ids.
        """
        self.pred.append(pred_features.detach())
        self.true.append(true_features.detach())
        self.index.append(image_index.detach())

    def compute(self) -> Tensor:
        """The mean score, scalar in [0, 1], chance 0.5."""
        index = dim_zero_cat(self.index)
        keep = first_of_each(index)
        return two_way_identification(dim_zero_cat(self.pred)[keep], dim_zero_cat(self.true)[keep]).mean()


def first_of_each(index: Tensor) -> Tensor:
    """Positions of the first occurrence of every value, ordered by value.

    >>> first_of_each(torch.tensor([7, 3, 7, 5])).tolist()
    [1, 3, 0]
    """
    order = torch.argsort(index, stable=True)
    ordered = index[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]
