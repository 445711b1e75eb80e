"""What the prior is trained on: schedule, random draws, target and loss, as functions without state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@runtime_checkable
class PriorNetwork(Protocol):
    """The seam: noisy (b, dim), timestep (b,), eeg_embeds (b, cond) | None, cond_mask (b,) bool | None -> (b, dim)."""

    def __call__(
        self, noisy: Tensor, timestep: Tensor, eeg_embeds: Tensor | None = None, cond_mask: Tensor | None = None
    ) -> Tensor:
        """Predicts noise, clean embedding or velocity; a row whose `cond_mask` is True is unconditional."""
        ...


def build_scheduler(
    *,
    prediction_type: str = "epsilon",
    num_train_timesteps: int = 1000,
    beta_schedule: str = "linear",
    timestep_spacing: str = "trailing",
    clip_sample: bool = False,
) -> Any:
    """Builds the `diffusers.DDPMScheduler` of the prior (betas 1e-4 … 0.02, posterior variance `fixed_small`).

    **The clip trap.** diffusers' default is `clip_sample=True` with range 1: made for pictures in [-1, 1], it clamps
    every denoised estimate while sampling. ATM (EEG_Image_decode@49cb3a2) leaves it on over un-normalised CLIP vectors
    whose values reach 13.6, which cuts their mean norm from 22.4 to 16.6 and leaves cosine 0.863 to the original. It is
    off here, always stated, and an argument only so that the published behaviour can be shown.

    `trailing` spacing starts sampling at the last training step, whatever the number of steps; diffusers' default
    `leading` starts 10 steps at t=900, on noise that the network has never seen called t=900 (Lin et al., 2024,
    arXiv 2305.08891, table 2).

    Args:
        prediction_type: What the network predicts: "epsilon" (the paper), "sample" or "v_prediction".
        num_train_timesteps: Steps of the forward process.
        beta_schedule: As diffusers names them, for example "linear" or "squaredcos_cap_v2".
        timestep_spacing: "trailing", "leading" or "linspace".
        clip_sample: Clamp denoised estimates to [-1, 1]; see above.

    Raises:
        ValueError: If the type is unknown; if the schedule ends before the signal is gone (too few steps for these
            betas), so that sampling could not start from pure noise; or if "epsilon" meets a schedule that ends with no
            signal at all ("squaredcos_cap_v2"): the first denoised estimate is the noise error divided by that signal
            (Lin et al., section 3.3), 20,000 times the error, and nothing clips it here.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}.")
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        timestep_spacing=timestep_spacing,
        variance_type="fixed_small",
        clip_sample=clip_sample,
        thresholding=False,
    )
    signal = float(scheduler.alphas_cumprod[-1]) ** 0.5
    if signal > 0.1:
        raise ValueError(
            f"beta_schedule {beta_schedule!r} over {num_train_timesteps} steps leaves {signal:.0%} of the signal at "
            "its last step, so sampling cannot start from noise; use more steps or 'squaredcos_cap_v2'."
        )
    if prediction_type == "epsilon" and signal < 1e-3:
        raise ValueError(
            f"prediction_type 'epsilon' divides its error by the signal at the last step, {signal:.0e} with "
            f"beta_schedule {beta_schedule!r}; use 'linear', or predict 'v_prediction' or 'sample'."
        )
    return scheduler


@dataclass(frozen=True)
class TrainingDraws:
    """The random numbers of one training step.

    Attributes:
        timestep: `(b,)` int64, uniform over the schedule.
        noise: `(b, dim)` standard normal, added to the target.
        cond_mask: `(b,)` bool, True drops that row's condition (classifier-free guidance, per sample).
        cond_noise: `(b, cond_dim)` standard normal, for noise augmentation of the condition.
    """

    timestep: Int[Tensor, " b"]
    noise: Float[Tensor, "b dim"]
    cond_mask: Bool[Tensor, " b"]
    cond_noise: Float[Tensor, "b cond_dim"]


def draw_training(
    rows: int, dim: int, cond_dim: int, *, num_train_timesteps: int, cond_drop: float, seed: int, rank: int = 0,
    world_size: int = 1,
) -> TrainingDraws:  # fmt: skip
    """Draws the random numbers of one step from `seed` alone.

    The draws of the *global* batch are made on every rank and each rank keeps its contiguous piece, as the data module
    cuts global batches: two processes see what one process with the global batch would, and a resumed run continues as
    if it had never stopped (the caller derives `seed` from run seed and step).

    Args:
        rows: Rows on this rank.
        dim: Size of the target.
        cond_dim: Size of the condition.
        num_train_timesteps: Steps of the schedule.
        cond_drop: Probability, per row, of dropping the condition.
        seed: Any non-negative integer below 2**63.
        rank: This process.
        world_size: All processes.
    """
    generator = torch.Generator().manual_seed(seed)
    total = rows * world_size
    timestep = torch.randint(0, num_train_timesteps, (total,), generator=generator)
    cond_mask = torch.rand(total, generator=generator) < cond_drop
    noise = torch.randn(total, dim, generator=generator)
    cond_noise = torch.randn(total, cond_dim, generator=generator)
    keep = slice(rank * rows, (rank + 1) * rows)
    return TrainingDraws(timestep[keep], noise[keep], cond_mask[keep], cond_noise[keep])


def training_target(
    scheduler: Any,
    clean: Float[Tensor, "b dim"],
    noise: Float[Tensor, "b dim"],
    timestep: Int[Tensor, " b"],
) -> Float[Tensor, "b dim"]:
    """What the network should say, by the scheduler's `prediction_type`.

    "epsilon": the noise (Ho et al., 2020, eq. 14). "sample": the clean vector. "v_prediction":
    `sqrt(a) * noise - sqrt(1 - a) * clean` with `a` the cumulative alpha (Salimans & Ho, 2022, arXiv 2202.00512,
    section 2.4).

    Args:
        scheduler: A diffusers scheduler.
        clean: `(b, dim)` targets.
        noise: `(b, dim)` the noise that was added.
        timestep: `(b,)` int64.

    Returns:
        `(b, dim)`.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    return scheduler.get_velocity(clean, noise, timestep)


def prior_loss(
    network: PriorNetwork,
    scheduler: Any,
    image_embeds: Float[Tensor, "b dim"],
    eeg_embeds: Float[Tensor, "b cond_dim"] | None,
    *,
    noise: Float[Tensor, "b dim"],
    timestep: Int[Tensor, " b"],
    cond_mask: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the network's prediction, unweighted over timesteps (Ho et al., 2020, eq. 14).

    Args:
        network: See `PriorNetwork`.
        scheduler: A diffusers scheduler; its `prediction_type` sets the target.
        image_embeds: `(b, dim)` clean targets, about unit variance per dimension.
        eeg_embeds: `(b, cond_dim)` conditions, or None.
        noise: `(b, dim)` standard normal.
        timestep: `(b,)` int64.
        cond_mask: `(b,)` bool, True drops the row's condition.

    Returns:
        Scalar. 0 for a perfect network; about 1 for one that always says 0 on standardised targets.
    """
    noisy = scheduler.add_noise(image_embeds, noise, timestep)
    prediction = network(noisy, timestep, eeg_embeds, cond_mask)
    return torch.nn.functional.mse_loss(prediction, training_target(scheduler, image_embeds, noise, timestep))
