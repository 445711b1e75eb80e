"""Stage 1: wires an encoder, its losses and an optimiser to the trainer."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from eegrecon.data.augment import Augment
from eegrecon.data.streams import FORGET, LEVELS
from eegrecon.losses.objective import EncoderObjective
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.modules.augmentation import augmented, row_draws
from eegrecon.modules.distributed import all_gather_rows, synchronise_batch_statistics
from eegrecon.modules.target_levels import LevelMixing

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
IDS = ("image_index", "concept_index", "subject", "repetition")


class EncoderModule(lightning.LightningModule):
    """Trains an encoder on an `EncoderObjective`.

    Batches hold eeg (b, n_chans, n_times), subject, image_index, concept_index and repetition (b,), and targets
    {"image": (b, target_dim), "text": (b, dim), "vae_latent": (b, *latent_shape), "levels": (b, n_levels, target_dim)}:
    the last three where text term, latent head and levels ask for them.

    Args:
        network: the encoder with its normalisation, what stands beside it and temperature; exposed as `network`.
        optimizer: from the parameters that are trained to an optimiser.
        objective: the loss; its contrastive terms are over the embeddings of all ranks.
        levels: what training rows take for their image target; None: "image".
        subject_dropout: probability that a training row comes from an unknown subject (id 0).
        augment: what else is done to training rows; None: nothing.
        seed: the run's, for what is drawn per row.

    Raises:
        ValueError: network and objective do not go together.
    """

    def __init__(
        self,
        network: AlignedEncoder,
        optimizer: OptimizerFactory,
        objective: EncoderObjective,
        *,
        levels: LevelMixing | None = None,
        subject_dropout: float = 0.0,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (objective.vae_latent > 0) != (network.latent_head is not None):
            raise ValueError("a latent head and a positive vae_latent weight go together")
        if (objective.kind == "siglip") != (network.logit_bias is not None):
            raise ValueError("a logit_bias and the kind siglip go together")
        if network.image_projection is not None and (objective.mse > 0 or objective.cosine > 0):
            raise ValueError("a regression onto a learned projection could be solved by a constant")
        self.network, self.make_optimizer, self.objective = network, optimizer, objective
        self.levels, self.subject_dropout, self.seed = levels, subject_dropout, seed
        self.augment = augment or Augment()

    def setup(self, stage: str) -> None:
        """Under several processes, batch statistics become statistics over all of them."""
        if stage == "fit" and self.trainer.world_size > 1:
            synchronise_batch_statistics(self.network)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Losses of one batch over all ranks: {loss, contrastive, other terms, logit_scale[, logit_bias], n_trials}.

        The terms are unweighted means; regressions are of this rank's trials, contrastive terms of all.
        """
        batch = self.training_view(batch, batch_idx)
        eeg_embeds = self.network(batch["eeg"], batch["subject"])
        image_embeds = self.network.project_images(batch["targets"]["image"])
        rows = {"eeg_embeds": eeg_embeds, "image_embeds": image_embeds}
        rows |= {name: batch[name] for name in ("image_index", "concept_index")}
        if self.objective.text > 0:
            rows["text_embeds"] = batch["targets"]["text"]
        every = {name: all_gather_rows(values) for name, values in rows.items()}
        if self.levels is not None:
            self.levels.observe(*(every[name] for name in ("eeg_embeds", "image_embeds", "image_index")))
        terms = {
            **self.objective.contrasts(every, self.network.logit_scale, self.network.logit_bias),
            **{name: values.mean() for name, values in self._regressions(eeg_embeds, batch["targets"]).items()},
        }
        scales = {name: value.detach().clone() for name, value in self._scales().items()}
        return {"loss": self.objective.total(terms), **terms, **scales, "n_trials": torch.tensor(len(eeg_embeds))}

    def training_view(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The batch as training sees it: what is done to training rows alone, by chance or by what was learnt so far.

        What is drawn depends on seed, epoch, batch and the row's place in the global batch, and on nothing else.
        """
        uniform = row_draws(len(batch["subject"]), self.seed, self.current_epoch, batch_idx)
        if self.subject_dropout > 0:
            subject = batch["subject"]
            forgotten = (uniform(FORGET) < self.subject_dropout).to(subject.device)
            batch = {**batch, "subject": subject.masked_fill(forgotten, 0)}
        if self.levels is not None:
            targets = batch["targets"]
            image = self.levels(targets["levels"], batch["image_index"], uniform(LEVELS))
            batch = {**batch, "targets": {**targets, "image": image}}
        if not self.augment.is_off:
            moments = (self.network.channel_mean, self.network.channel_std)
            batch = augmented(batch, self.augment, *moments, uniform)
        return batch

    def on_train_epoch_end(self) -> None:
        """Levels may change between epochs."""
        if self.levels is not None:
            self.levels.end_epoch()
            for name, value in self.levels.shares().items():
                self.log(f"train/{name}", value, rank_zero_only=False)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """One row per trial: {eeg_embeds, image_embeds[, text_embeds], regressions, four ids (b,)}, and the scales.

        What needs the whole split (retrieval, contrastive loss) is computed from these at the epoch's end.
        """
        eeg_embeds = self.network(batch["eeg"], batch["subject"])
        rows = {
            "eeg_embeds": eeg_embeds.float(),
            "image_embeds": self.network.project_images(batch["targets"]["image"]).float(),
            **self._regressions(eeg_embeds, batch["targets"]),
            **{name: batch[name] for name in IDS},
        }
        if self.objective.text > 0:
            rows["text_embeds"] = batch["targets"]["text"]
        return {**rows, **self._scales()}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Embeddings of one batch with their ids: what `embeds/*.safetensors` holds."""
        ids = {name: batch[name] for name in ("image_index", "subject", "repetition")}
        return {"eeg_embeds": self.network(batch["eeg"], batch["subject"]), **ids}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser over all parameters that are trained."""
        return self.make_optimizer(value for value in self.network.parameters() if value.requires_grad)

    def _scales(self) -> dict[str, Tensor]:
        bias = self.network.logit_bias
        return {"logit_scale": self.network.logit_scale, **({} if bias is None else {"logit_bias": bias})}

    def _regressions(self, eeg_embeds: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The regression terms, one number per trial: {mse[, cosine][, vae_latent]}, each (b,).

        Where the image side is learned (`image_projection`), there is nothing to regress onto but the latent.
        """
        head, projected = self.network.latent_head, self.network.image_projection is not None
        return self.objective.regressions(
            eeg_embeds,
            None if projected else targets["image"],
            None if head is None else head(eeg_embeds),
            targets.get("vae_latent"),
        )
