"""`ProjectorModule`: trains the map from image embeddings to a captioner's visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from torch import nn
from torch.nn.functional import mse_loss


class ProjectorModule(lightning.LightningModule):
    """Mean squared error between a projector's tokens and those of the captioner's own vision tower.

    Args:
        projector: `forward(image_embeds (b, dim)) -> (b, n_tokens, width)`.
        optimizer: Called with the parameters to train, returns the optimiser.
    """

    def __init__(
        self, projector: nn.Module, optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    ) -> None:
        super().__init__()
        self.projector, self._optimizer = projector, optimizer

    def configure_optimizers(self) -> Any:
        """The optimiser; the learning rate stays as it is."""
        return self._optimizer(self.projector.parameters())

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of (image embeddings (b, dim), visual tokens (b, n_tokens, width))."""
        image_embeds, tokens = batch
        loss = mse_loss(self.projector(image_embeds), tokens)
        self.log("train/projector_mse", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Log `val/projector_mse`, over all rows alike whatever the batches."""
        image_embeds, tokens = batch
        loss = mse_loss(self.projector(image_embeds), tokens)
        several = self.trainer.world_size > 1
        self.log("val/projector_mse", loss, prog_bar=True, batch_size=len(tokens), sync_dist=several)
