"""What TensorBoard shows of a training run beside its scores."""

import time
from typing import Any

import lightning
import torch
from torch.nn.utils import get_total_norm


class TrainingMonitor(lightning.Callback):
    """Logs training per step and per epoch.

    Per step (`log_every_n_steps`): every scalar that `training_step` returns, as `train/<name>` (loss terms
    unweighted; `logit_scale` in log space), `train/lr`, `train/gradient_norm` (2-norm before clipping, unitless) and
    `train/trials_per_second` (all ranks, data loading included). Loss terms also as epoch means, `train/<name>_epoch`.
    """

    def __init__(self) -> None:
        self._last = 0.0
        self._trials, self._seconds = 0, 0.0

    @property
    def trials_per_second(self) -> float | None:
        """Over all training steps of this process's lifetime (validation left out)."""
        return self._trials / self._seconds if self._seconds else None

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self._last = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Logs the gradient norm when this step is logged at all: it reads every gradient once."""
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/gradient_norm", get_total_norm(gradients))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Logs the step's scalars."""
        now = time.perf_counter()
        n_trials = int(outputs["n_trials"])
        rate = n_trials * trainer.world_size / (now - self._last)
        self._trials += n_trials * trainer.world_size
        self._seconds += now - self._last
        self._last = now
        pl_module.log("train/trials_per_second", rate, prog_bar=True, batch_size=n_trials)
        pl_module.log("train/lr", trainer.optimizers[0].param_groups[0]["lr"])
        for name, value in outputs.items():
            if name == "logit_scale":
                pl_module.log("train/logit_scale", value)
            elif name != "n_trials":
                pl_module.log(
                    f"train/{name}",
                    value,
                    on_step=True,
                    on_epoch=True,
                    prog_bar=name == "loss",
                    batch_size=n_trials,
                    sync_dist=trainer.world_size > 1,
                )
