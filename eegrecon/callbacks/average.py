"""A moving average of the weights, which is what gets validated and exported."""

from collections.abc import Sequence

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Exponential moving average of weights and batch statistics after every step (Lightning's `WeightAveraging`).

    Early on the average forgets faster, `min(decay, (1 + n) / (10 + n))` after n steps (as the prior's does), so that
    a short training is not validated on its first weights. Whole numbers (ids, counters) are copied: Lightning's own
    `EMAWeightAveraging` averages them as well and rounds the result down.

    Args:
        decay: share of the old average that stays at each step, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {decay}")
        super().__init__(multi_avg_fn=self._update)
        self.decay = decay

    @torch.no_grad()
    def _update(self, averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        keep = min(self.decay, (1 + n) / (10 + n))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value.to(average.device), 1 - keep)
            else:
                average.copy_(value)
