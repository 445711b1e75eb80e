"""Validation scores of the prior over the whole split, at the end of every validated epoch."""

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics.utilities.distributed import gather_all_tensors

from eegrecon.metrics.functional.retrieval import concept_retrieval, first_rows


class PriorScores(lightning.Callback):
    """Logs `score_prior` under `val/`, from the rows that `PriorModule.validation_step` returns.

    Rows are gathered over all ranks and each (subject, picture) counts once, so no score depends on batch size or
    number of processes.

    Args:
        concept_index: (n_images,) int, the concept of every picture of the set; None: no retrieval.
    """

    def __init__(self, concept_index: Tensor | None = None) -> None:
        self.concept_index = concept_index
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
        for name, value in score_prior(rows, self.concept_index).items():
            pl_module.log(f"val/{name}", value, prog_bar=name == "prior_cosine", rank_zero_only=False)


def score_prior(rows: dict[str, Tensor], concept_index: Tensor | None = None) -> dict[str, float]:
    """Scores of a whole split by name, without the prefix `val/`.

    Args:
        rows: pred_image_embeds, image_embeds (n, dim), eeg_embeds (n, cond_dim), subject, image_index, prior_loss (n,);
            a (subject, image_index) that occurs twice counts once.
        concept_index: (n_images,) int, indexed by image_index; None: no retrieval.

    Returns:
        `prior_loss`; `prior_cosine`, the mean cosine of the sampled embedding to the true one (perfect 1), beside
        `prior_cosine_shuffled`, that to a picture half the split away (the null) and, where sizes agree,
        `embed_cosine`, that of the EEG embedding itself; `prior_norm_ratio`, mean norm sampled over true (perfect 1);
        `prior_retrieval_top1_<N>way` of the sampled embedding beside `embed_retrieval_top1_<N>way` (chance 1/N).
    """
    keep = first_rows(torch.stack([rows["image_index"], rows["subject"]], dim=1).long())
    rows = {name: value[keep].cpu() for name, value in rows.items()}
    pred, true = rows["pred_image_embeds"].double(), rows["image_embeds"].double()
    # Sorted by picture (and then by subject), the next row often shows the same concept; the one half a split away
    # shows another.
    other = true.roll(max(1, len(true) // 2), dims=0)
    scores = {
        "prior_loss": rows["prior_loss"].double().mean(),
        "prior_cosine": cosine_similarity(pred, true).mean(),
        "prior_cosine_shuffled": cosine_similarity(pred, other).mean(),
        "prior_norm_ratio": pred.norm(dim=1).mean() / true.norm(dim=1).mean(),
    }
    candidates = {"prior": pred}
    if rows["eeg_embeds"].shape == true.shape:
        candidates["embed"] = rows["eeg_embeds"].double()
        scores["embed_cosine"] = cosine_similarity(candidates["embed"], true).mean()
    named = {name: float(value) for name, value in scores.items()}
    if concept_index is not None:
        concepts = concept_index.cpu()[rows["image_index"].long()]
        for name, vectors in candidates.items():
            found = concept_retrieval(vectors, true, rows["image_index"], concepts)
            named[f"{name}_retrieval_top1_{found.n_way}way"] = found.top1
    return named
