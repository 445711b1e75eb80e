"""Validation retrieval and losses over the whole split, at the end of every epoch."""

from typing import Any

import lightning
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from eegrecon.losses.contrastive import info_nce, same_image
from eegrecon.metrics.functional.retrieval import concept_retrieval
from eegrecon.metrics.retrieval import unique_trials


class RetrievalCallback(lightning.Callback):
    """Logs scores of the rows that `validation_step` returns, gathered over all ranks, each trial counted once.

    `val/retrieval_top1_<N>way`, `val/retrieval_top5_<N>way` (N concepts, see `concept_retrieval`; chance 1/N, 5/N),
    `val/contrastive` (InfoNCE with the whole split as one batch), `val/mse` and, with a latent head, `val/vae_latent`.
    None of them depends on batch size or number of processes.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[Tensor]] = {}
        self._logit_scale = torch.tensor(0.0)

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
            if name == "logit_scale":
                self._logit_scale = value.detach()
            else:
                self._rows.setdefault(name, []).append(value.detach())

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Scores and logs, except in the sanity check, which sees only a few batches."""
        rows, self._rows = self._rows, {}
        if trainer.sanity_checking or not rows:
            return
        gathered = {name: torch.cat(values) for name, values in rows.items()}
        if trainer.world_size > 1:
            gathered = {name: torch.cat(gather_all_tensors(value)) for name, value in gathered.items()}
        values = score_validation(unique_trials(gathered), self._logit_scale)
        for name, value in values.items():
            pl_module.log(f"val/{name}", value, prog_bar="top1" in name, rank_zero_only=False)


def score_validation(rows: dict[str, Tensor], logit_scale: Tensor) -> dict[str, float]:
    """Scores of a whole split by name, without the prefix `val/`.

    Args:
        rows: eeg_embeds and image_embeds (n, dim), image_index and concept_index (n,), mse and perhaps vae_latent (n,).
        logit_scale: scalar, log space.
    """
    ids = (rows["image_index"], rows["concept_index"])
    scores = concept_retrieval(rows["eeg_embeds"], rows["image_embeds"], *ids)
    positives = same_image(rows["image_index"])
    return {
        f"retrieval_top1_{scores.n_way}way": scores.top1,
        f"retrieval_top5_{scores.n_way}way": scores.top5,
        "contrastive": float(info_nce(rows["eeg_embeds"], rows["image_embeds"], logit_scale, positives)),
        **{name: float(rows[name].mean()) for name in ("mse", "vae_latent") if name in rows},
    }
