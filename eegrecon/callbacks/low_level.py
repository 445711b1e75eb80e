"""Validation scores of the low-level pathway over the whole split, at the end of every validated epoch."""

from typing import Any

import lightning
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from eegrecon.metrics.functional.latents import latent_scores
from eegrecon.metrics.retrieval import unique_trials


class LatentScores(lightning.Callback):
    """Logs `latent_scores` under `val/`, from the rows that `LowLevelModule.validation_step` returns.

    Rows are gathered over all ranks and each (subject, picture) counts once, so no score depends on batch size or
    number of processes.

    Args:
        mean: (c, h, w) mean latent of the training pictures.
    """

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean
        self._rows: dict[str, list[Tensor]] = {}

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forgets rows of an interrupted validation."""
        self._rows = {}

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the batch's rows."""
        for name, value in outputs.items():
            self._rows.setdefault(name, []).append(value.detach())

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Scores and logs, except in the sanity check, which sees only a few batches."""
        kept, self._rows = self._rows, {}
        if trainer.sanity_checking or not kept:
            return
        rows = {name: torch.cat(values) for name, values in kept.items()}
        if trainer.world_size > 1:
            rows = {name: torch.cat(gather_all_tensors(value)) for name, value in rows.items()}
        for name, value in score_rows(rows, self.mean).items():
            pl_module.log(f"val/{name}", value, prog_bar=name == "latent_skill", rank_zero_only=False)


def score_rows(rows: dict[str, Tensor], mean: Tensor) -> dict[str, float]:
    """`latent_scores` of a whole split, each (subject, picture, repetition) once.

    Args:
        rows: latents and target_latents (n, c, h, w), subject, image_index and repetition (n,).
        mean: (c, h, w).
    """
    rows = unique_trials(rows)
    return latent_scores(rows["latents"], rows["target_latents"], mean)
