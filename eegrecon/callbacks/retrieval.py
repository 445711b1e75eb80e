"""Validation retrieval and losses over the whole split, at the end of every epoch."""

from typing import Any

import lightning
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from eegrecon.losses.objective import EncoderObjective
from eegrecon.metrics.functional.retrieval import concept_retrieval
from eegrecon.metrics.retrieval import unique_trials

SCALES = ("logit_scale", "logit_bias")
REGRESSIONS = ("mse", "cosine", "vae_latent")


class RetrievalCallback(lightning.Callback):
    """Logs scores of the rows that `validation_step` returns, gathered over all ranks, each trial counted once.

    `val/retrieval_top1_<N>way`, `val/retrieval_top5_<N>way` (N concepts, see `concept_retrieval`; chance 1/N, 5/N),
    the contrastive terms of the objective with the whole split as one batch (`val/contrastive`, `val/text`) and the
    means of its regressions (`val/mse`, `val/cosine`, `val/vae_latent`). None of them depends on batch size or number
    of processes.

    Args:
        objective: the loss that is trained on.
    """

    def __init__(self, objective: EncoderObjective) -> None:
        self.objective = objective
        self._rows: dict[str, list[Tensor]] = {}
        self._scales: dict[str, Tensor] = {}

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
            if name in SCALES:
                self._scales[name] = value.detach()
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
        values = score_validation(unique_trials(gathered), self.objective, **self._scales)
        for name, value in values.items():
            pl_module.log(f"val/{name}", value, prog_bar="top1" in name, rank_zero_only=False)


def score_validation(
    rows: dict[str, Tensor], objective: EncoderObjective, logit_scale: Tensor, logit_bias: Tensor | None = None
) -> dict[str, float]:
    """Scores of a whole split by name, without the prefix `val/`.

    Args:
        rows: eeg_embeds and image_embeds (n, dim), image_index and concept_index (n,), text_embeds (n, dim) if the
            objective has a text term, and whichever of mse, cosine and vae_latent (n,) there are.
        objective: The loss that is trained on.
        logit_scale: The network's, scalar.
        logit_bias: The network's, scalar, for siglip.
    """
    ids = (rows["image_index"], rows["concept_index"])
    scores = concept_retrieval(rows["eeg_embeds"], rows["image_embeds"], *ids)
    contrasts = objective.contrasts(rows, logit_scale, logit_bias)
    return {
        f"retrieval_top1_{scores.n_way}way": scores.top1,
        f"retrieval_top5_{scores.n_way}way": scores.top5,
        **{name: float(value) for name, value in contrasts.items()},
        **{name: float(rows[name].mean()) for name in REGRESSIONS if name in rows},
    }
