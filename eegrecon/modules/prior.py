"""`PriorModule`: stage 2's wiring of network, objective, sampler and validation scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from eegrecon.diffusion.objectives import draw_training, prior_loss, training_target
from eegrecon.diffusion.samplers import row_generators, sample_embeds, stable_seed
from eegrecon.diffusion.scaled import ScaledPrior

LR_SCHEDULES = ("constant", "cosine")
_LOSS_DRAWS = 8  # timesteps per validation row, stratified over the schedule; a row's draws are the same every epoch


class PriorModule(lightning.LightningModule):
    """Trains a `diffusion.scaled.ScaledPrior` on batches `{eeg_embeds, image_embeds, subject, image_index}`.

    All randomness but dropout is derived from `seed` and, in training, from epoch and batch, in validation from each
    row's subject and image: independent of device count, batch size and resumption. Validation noise and timesteps are
    the same every epoch, so losses compare.

    **Exposure bias.** The encoder has seen its training pictures, so its training embeddings are better than any it
    will make of new EEG, and a prior trained on them trusts its condition too much (the authors admit it in
    EEG_Image_decode issue 8). `cond_noise` blurs training conditions to counter it; validation concepts were held out
    from the encoder as well, so the validation scores show whether it helps.

    Args:
        prior: The network with its scaling, already fitted.
        optimizer: Called with the parameters to train, returns the optimiser.
        cond_drop: Probability of dropping a row's condition in training, in [0, 1].
        cond_noise: Standard deviation of Gaussian noise on the standardised condition in training; 0 is off.
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
        prior: ScaledPrior,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        cond_drop: float = 0.1,
        cond_noise: float = 0.0,
        ema_decay: float = 0.0,
        lr_schedule: str = "constant",
        warmup_steps: int = 0,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0.0 <= cond_drop <= 1.0:
            raise ValueError(f"cond_drop is a probability in [0, 1], got {cond_drop}.")
        if cond_noise < 0.0:
            raise ValueError(f"cond_noise is a standard deviation of at least 0, got {cond_noise}.")
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}.")
        if lr_schedule not in LR_SCHEDULES:
            raise ValueError(f"lr_schedule must be one of {', '.join(LR_SCHEDULES)}, got {lr_schedule!r}.")
        self.prior = prior
        self.ema_network = copy.deepcopy(prior.network).requires_grad_(False) if ema_decay else None
        self.make_optimizer = optimizer
        self.cond_drop, self.cond_noise, self.ema_decay = cond_drop, cond_noise, ema_decay
        self.lr_schedule, self.warmup_steps = lr_schedule, warmup_steps
        self.guidance_scale, self.num_inference_steps = guidance_scale, num_inference_steps
        self.seed = seed
        self._averaged_step = 0

    @property
    def network(self) -> nn.Module:
        """The network that is validated and exported: the moving average where there is one."""
        return self.prior.network if self.ema_network is None else self.ema_network

    def exported_state(self) -> dict[str, Tensor]:
        """State dict of the `ScaledPrior` to publish, `network.*` being `network`'s weights."""
        state = {key: value for key, value in self.prior.state_dict().items() if not key.startswith("network.")}
        return state | {f"network.{key}": value for key, value in self.network.state_dict().items()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """One step on a batch: `{loss, n_trials}`."""
        target = self.prior.standardise_target(batch["image_embeds"])
        condition = self.prior.standardise_cond(batch["eeg_embeds"])
        draws = draw_training(
            len(target),
            self.prior.dim,
            self.prior.cond_dim,
            num_train_timesteps=self.prior.scheduler.config.num_train_timesteps,
            cond_drop=self.cond_drop,
            seed=stable_seed(self.seed, self.current_epoch, batch_idx),
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )
        if self.cond_noise:
            condition = condition + self.cond_noise * draws.cond_noise.to(condition)
        loss = prior_loss(
            self.prior.network,
            self.prior.scheduler,
            target,
            condition,
            noise=draws.noise.to(target),
            timestep=draws.timestep.to(target.device),
            cond_mask=draws.cond_mask.to(target.device),
        )
        return {"loss": loss, "n_trials": torch.tensor(len(target))}

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
        target = self.prior.standardise_target(batch["image_embeds"])
        condition = self.prior.standardise_cond(batch["eeg_embeds"])
        generators = row_generators(self.seed, batch["subject"].tolist(), batch["image_index"].tolist())
        network = self.network
        sampled = sample_embeds(
            network,
            self.prior.scheduler,
            condition,
            dim=self.prior.dim,
            generators=generators,
            guidance_scale=self.guidance_scale,
            num_inference_steps=self.num_inference_steps,
        )
        return {
            "pred_image_embeds": self.prior.restore_target(sampled),
            "prior_loss": self._row_losses(network, target, condition, generators),
            **{name: batch[name] for name in ("eeg_embeds", "image_embeds", "subject", "image_index")},
        }

    def _row_losses(
        self, network: nn.Module, target: Tensor, condition: Tensor, generators: list[torch.Generator]
    ) -> Tensor:
        """`(b,)` loss per row over `_LOSS_DRAWS` stratified timesteps."""
        steps = self.prior.scheduler.config.num_train_timesteps
        place = torch.stack([torch.rand(_LOSS_DRAWS, generator=g) for g in generators])
        noise = torch.stack([torch.randn(_LOSS_DRAWS, self.prior.dim, generator=g) for g in generators]).to(target)
        timestep = ((torch.arange(_LOSS_DRAWS) + place) / _LOSS_DRAWS * steps).long().clamp_max(steps - 1)
        losses = [
            nn.functional.mse_loss(
                network(self.prior.scheduler.add_noise(target, noise[:, k], t), t, condition, None),
                training_target(self.prior.scheduler, target, noise[:, k], t),
                reduction="none",
            ).mean(dim=1)
            for k, t in enumerate(timestep.T.to(target.device))
        ]
        return torch.stack(losses).mean(dim=0)

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
