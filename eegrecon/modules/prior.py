"""`PriorModule`: stage 2's wiring of network, objective, sampler and validation scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from eegrecon.diffusion.samplers import row_generators, stable_seed
from eegrecon.diffusion.scaled import PointPrior, ScaledPrior
from eegrecon.modules.prior_objectives import PriorObjective

LR_SCHEDULES = ("constant", "cosine")
_LOSS_STREAM = 0x4C4F5353  # keeps a validation row's loss draws apart from those of its sample


class PriorModule(lightning.LightningModule):
    """Trains and validates a prior on batches `{eeg_embeds, image_embeds, subject, image_index}`.

    All randomness but dropout is derived from `seed` and, in training, from epoch and batch, in validation from each
    row's subject and image: independent of device count, batch size and resumption. Validation noise and timesteps are
    the same every epoch, so losses compare.

    **Exposure bias.** The encoder has seen its training pictures, so its training embeddings are better than any it
    will make of new EEG, and a prior trained on them trusts its condition too much (the authors admit it in
    EEG_Image_decode issue 8). The objective's `cond_noise` blurs training conditions to counter it; validation concepts
    were held out from the encoder as well, so the validation scores show whether it helps.

    Args:
        prior: The network with its scaling, already fitted.
        objective: What it is trained for; its loss is also validated.
        optimizer: Called with the parameters to train, returns the optimiser.
        ema_decay: Weights' moving average per step, in [0, 1); 0 is off. If on, the average is validated and exported.
        lr_schedule: "constant" or "cosine" (to 0 at the last step).
        warmup_steps: Linear warm-up of the learning rate.
        guidance_scale: Of validation samples.
        num_inference_steps: Of validation samples.
        seed: The run's seed.

    Raises:
        ValueError: On a number outside its range or an unknown schedule.
    """

    def __init__(
        self,
        prior: ScaledPrior | PointPrior,
        objective: PriorObjective,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        ema_decay: float = 0.0,
        lr_schedule: str = "constant",
        warmup_steps: int = 0,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}.")
        if lr_schedule not in LR_SCHEDULES:
            raise ValueError(f"lr_schedule must be one of {', '.join(LR_SCHEDULES)}, got {lr_schedule!r}.")
        self.prior, self.objective = prior, objective
        self.ema_network = copy.deepcopy(prior.network).requires_grad_(False) if ema_decay else None
        self.make_optimizer = optimizer
        self.ema_decay = ema_decay
        self.lr_schedule, self.warmup_steps = lr_schedule, warmup_steps
        self.guidance_scale, self.num_inference_steps = guidance_scale, num_inference_steps
        self.seed = seed
        self._averaged_step = 0

    @property
    def network(self) -> nn.Module:
        """The network that is validated and exported: the moving average where there is one."""
        return self.prior.network if self.ema_network is None else self.ema_network

    def exported_state(self) -> dict[str, Tensor]:
        """State dict of the prior to publish, `network.*` being `network`'s weights."""
        state = {key: value for key, value in self.prior.state_dict().items() if not key.startswith("network.")}
        return state | {f"network.{key}": value for key, value in self.network.state_dict().items()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """One step on a batch: `{loss, n_trials}`."""
        loss = self.objective.training_loss(
            self.prior,
            batch["image_embeds"],
            batch["eeg_embeds"],
            seed=stable_seed(self.seed, self.current_epoch, batch_idx),
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )
        return {"loss": loss, "n_trials": torch.tensor(len(batch["image_embeds"]))}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Updates the moving average once per optimiser step."""
        step = self.trainer.global_step
        if self.ema_network is None or step == self._averaged_step:
            return
        self._averaged_step = step
        decay = min(
            self.ema_decay, (1 + step) / (10 + step)
        )  # short memory first, or it would average in the initialisation
        with torch.no_grad():
            for average, value in zip(self.ema_network.parameters(), self.prior.network.parameters(), strict=True):
                average.lerp_(value, 1.0 - decay)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """One row per picture: `{pred_image_embeds, prior_loss (b,)}` beside the batch's own four entries.

        Scores need the whole split: `callbacks.prior.PriorScores` computes them from these rows.
        """
        rows = (batch["subject"].tolist(), batch["image_index"].tolist())
        sampled = self.prior.sample(
            batch["eeg_embeds"],
            generators=row_generators(self.seed, *rows),
            guidance_scale=self.guidance_scale,
            num_inference_steps=self.num_inference_steps,
            network=self.network,
        )
        # Streams of their own: what a sampler draws must not change the noise of the loss.
        generators = row_generators(self.seed, *rows, [_LOSS_STREAM] * len(sampled))
        losses = self.objective.row_losses(
            self.prior, self.network, batch["image_embeds"], batch["eeg_embeds"], generators
        )
        return {
            "pred_image_embeds": sampled,
            "prior_loss": losses,
            **{name: batch[name] for name in ("eeg_embeds", "image_embeds", "subject", "image_index")},
        }

    def configure_optimizers(self) -> Any:
        """Optimiser with warm-up and the chosen decay, per step."""
        optimizer = self.make_optimizer(self.prior.network.parameters())
        if self.lr_schedule == "constant" and not self.warmup_steps:
            return optimizer
        total = max(1, int(self.trainer.estimated_stepping_batches))

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / (self.warmup_steps + 1)
            if self.lr_schedule == "constant":
                return 1.0
            done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
