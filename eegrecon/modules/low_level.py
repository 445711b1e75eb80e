"""The low-level pathway: wires a network from EEG to VAE latents, its loss and an optimiser to the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from eegrecon.data.augment import Augment
from eegrecon.losses.latents import LatentObjective
from eegrecon.models.low_level.wrapper import LowLevelDecoder
from eegrecon.modules.augmentation import augmented, row_draws
from eegrecon.modules.distributed import synchronise_batch_statistics

IDS = ("image_index", "concept_index", "subject", "repetition")
TARGET = "vae_latent"


class LowLevelModule(lightning.LightningModule):
    """Trains a network to predict the VAE latent of the picture that was seen.

    Batches hold eeg (b, n_chans, n_times), subject, image_index, concept_index and repetition (b,), and targets
    {"vae_latent": (b, *latent_shape)}, times the VAE's scaling_factor.

    Args:
        network: With its scaling; exposed as `network`.
        optimizer: From the parameters that are trained to an optimiser.
        objective: The loss.
        autoencoder: For the image term: has `decode(latents) -> pictures` and `to(device)`; frozen, and no part of
            checkpoints. None: there is none.
        augment: What else is done to training rows; None: nothing.
        seed: The run's, for what is drawn per row.

    Raises:
        ValueError: An image term without an autoencoder.
    """

    def __init__(
        self,
        network: LowLevelDecoder,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        objective: LatentObjective,
        *,
        autoencoder: Any = None,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if objective.image > 0 and autoencoder is None:
            raise ValueError("an image term needs an autoencoder that decodes")
        self.network, self.make_optimizer, self.objective = network, optimizer, objective
        self.autoencoder = autoencoder if objective.image > 0 else None
        self.augment, self.seed = augment or Augment(), seed

    def setup(self, stage: str) -> None:
        """Under several processes, batch statistics become statistics over all of them."""
        if stage == "fit" and self.trainer.world_size > 1:
            synchronise_batch_statistics(self.network)
        if self.autoencoder is not None:
            self.autoencoder.to(self.trainer.strategy.root_device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Losses of this rank's rows: {loss, l1, mse[, image], n_trials}, the terms unweighted means."""
        if not self.augment.is_off:
            draw = row_draws(len(batch["subject"]), self.seed, self.current_epoch, batch_idx)
            batch = augmented(batch, self.augment, self.network.channel_mean, self.network.channel_std, draw)
        latents = self.network(batch["eeg"], batch["subject"])
        decode = None if self.autoencoder is None else self.autoencoder.decode
        terms = self.objective.terms(latents, batch["targets"][TARGET], decode)
        means = {name: values.mean() for name, values in terms.items()}
        return {"loss": self.objective.total(means), **means, "n_trials": torch.tensor(len(latents))}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """One row per trial: {latents, target_latents (b, *latent_shape), four ids (b,)}.

        Scores need the whole split: `callbacks.low_level.LatentScores` computes them from these rows.
        """
        latents = self.network(batch["eeg"], batch["subject"]).float()
        ids = {name: batch[name] for name in IDS}
        return {"latents": latents, "target_latents": batch["targets"][TARGET].float(), **ids}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser over all parameters."""
        return self.make_optimizer(self.network.parameters())
