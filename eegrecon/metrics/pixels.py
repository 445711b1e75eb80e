"""torchmetrics shells around the pixel metrics."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from eegrecon.metrics.functional.pixels import pixcorr, ssim
from eegrecon.metrics.identification import first_of_each


class _PictureMean(Metric):
    """Mean of a per-picture score; duplicates that a distributed sampler pads in count once."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    scores: list[Tensor]
    index: list[Tensor]
    score: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        for name in ("scores", "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, pred: Tensor, true: Tensor, image_index: Tensor) -> None:
        """Add a batch: pred and true (b, 3, h, w) in [0, 1], image_index (b,) integer ids."""
        self.scores.append(type(self).score(pred.detach(), true.detach()).float())
        self.index.append(image_index.detach())

    def compute(self) -> Tensor:
        """The mean over pictures, scalar."""
        return dim_zero_cat(self.scores)[first_of_each(dim_zero_cat(self.index))].mean()


class PixCorr(_PictureMean):
    """Mean pixel correlation, see `functional.pixels.pixcorr`."""

    score = staticmethod(pixcorr)


class SSIM(_PictureMean):
    """Mean structural similarity, see `functional.pixels.ssim`."""

    score = staticmethod(ssim)
