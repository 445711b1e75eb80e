"""Stage 1: wires an encoder, its losses and an optimiser to the trainer."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from eegrecon.losses.contrastive import info_nce, same_image
from eegrecon.losses.regression import mse_embedding, mse_latent
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.modules.distributed import all_gather_rows, synchronise_batch_statistics

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class EncoderModule(lightning.LightningModule):
    """Trains `contrastive * InfoNCE + mse * MSE(embedding) + vae_latent * MSE(latent)`.

    Batches hold eeg (b, n_chans, n_times), subject, image_index, concept_index and repetition (b,), and targets
    {"image": (b, dim), "vae_latent": (b, *latent_shape) if there is a latent head}.

    Args:
        network: the encoder with its normalisation, latent head and temperature; exposed as `network`.
        optimizer: from parameters to optimiser.
        contrastive: weight of InfoNCE over the embeddings of all ranks.
        mse: weight of the regression onto the image embedding.
        vae_latent: weight of the regression onto the VAE latent; needs a latent head.

    Raises:
        ValueError: the latent weight and the latent head do not go together.
    """

    def __init__(
        self,
        network: AlignedEncoder,
        optimizer: OptimizerFactory,
        *,
        contrastive: float,
        mse: float,
        vae_latent: float = 0.0,
    ) -> None:
        super().__init__()
        if (vae_latent > 0) != (network.latent_head is not None):
            raise ValueError("a latent head and a positive vae_latent weight go together")
        self.network = network
        self.make_optimizer = optimizer
        self.contrastive, self.mse, self.vae_latent = contrastive, mse, vae_latent

    def setup(self, stage: str) -> None:
        """Under several processes, batch statistics become statistics over all of them."""
        if stage == "fit" and self.trainer.world_size > 1:
            synchronise_batch_statistics(self.network)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Losses of one batch over all ranks: {loss, contrastive, mse[, vae_latent], logit_scale, n_trials}.

        The terms are unweighted means; `mse` and `vae_latent` are of this rank's trials, `contrastive` of all.
        """
        eeg_embeds = self.network(batch["eeg"], batch["subject"])
        rows = (eeg_embeds, batch["targets"]["image"], batch["image_index"])
        every_eeg, every_image, every_index = map(all_gather_rows, rows)
        logit_scale = self.network.logit_scale
        terms = {
            "contrastive": info_nce(every_eeg, every_image, logit_scale, same_image(every_index)),
            **{name: values.mean() for name, values in self._regressions(eeg_embeds, batch["targets"]).items()},
        }
        weights = {"contrastive": self.contrastive, "mse": self.mse, "vae_latent": self.vae_latent}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        n_trials = torch.tensor(len(eeg_embeds))
        return {"loss": loss, **terms, "logit_scale": logit_scale.detach().clone(), "n_trials": n_trials}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """One row per trial: {eeg_embeds, image_embeds, mse[, vae_latent], four ids (b,)}, and the scalar logit_scale.

        What needs the whole split (retrieval, contrastive loss) is computed from these at the epoch's end.
        """
        eeg_embeds = self.network(batch["eeg"], batch["subject"])
        ids = {name: batch[name] for name in ("image_index", "concept_index", "subject", "repetition")}
        return {
            "eeg_embeds": eeg_embeds.float(),
            "image_embeds": batch["targets"]["image"],
            **self._regressions(eeg_embeds, batch["targets"]),
            **ids,
            "logit_scale": self.network.logit_scale,
        }

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Embeddings of one batch with their ids: what `embeds/*.safetensors` holds."""
        ids = {name: batch[name] for name in ("image_index", "subject", "repetition")}
        return {"eeg_embeds": self.network(batch["eeg"], batch["subject"]), **ids}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser over all parameters."""
        return self.make_optimizer(self.network.parameters())

    def _regressions(self, eeg_embeds: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The regression terms, one number per trial: {mse (b,)[, vae_latent (b,)]}."""
        terms = {"mse": mse_embedding(eeg_embeds, targets["image"], reduce=False)}
        if self.network.latent_head is not None:
            latents = self.network.latent_head(eeg_embeds)
            terms["vae_latent"] = mse_latent(latents, targets["vae_latent"], reduce=False)
        return terms
