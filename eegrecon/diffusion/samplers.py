"""Sampling image embeddings from the prior, one random generator per row."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eegrecon.diffusion.objectives import PriorNetwork


def stable_seed(*keys: int) -> int:
    """A seed in `[0, 2**63)` from integers, equal on every machine and process; one differing key changes it wholly.

    >>> stable_seed(0, 1) == stable_seed(0, 1), stable_seed(0, 1) == stable_seed(1, 0)
    (True, False)
    """
    digest = hashlib.sha256(",".join(str(int(key)) for key in keys).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def row_generators(seed: int, *keys: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per row, seeded by `seed` and that row's keys (say subject, image_index and draw).

    A row's random numbers then depend on what the row is, not on its place in a batch or on the number of devices.

    Args:
        seed: The run's seed.
        *keys: Integer sequences (or 1-d tensors), all as long as there are rows.
    """
    return [torch.Generator().manual_seed(stable_seed(seed, *row)) for row in zip(*keys, strict=True)]


def sample_embeds(
    network: PriorNetwork,
    scheduler: Any,
    eeg_embeds: Float[Tensor, "b cond_dim"] | None,
    *,
    dim: int,
    generators: Sequence[torch.Generator],
    guidance_scale: float = 1.0,
    num_inference_steps: int = 50,
    step_args: Mapping[str, Any] | None = None,
) -> Float[Tensor, "b {dim}"]:
    """Draws one embedding per row, with classifier-free guidance (Ho & Salimans, 2022), by any diffusers scheduler.

    `prediction = uncond + guidance_scale * (cond - uncond)`: 0 is unconditional, 1 conditional, more than 1 guided.
    ATM's paper writes `(1 + w) * cond - w * uncond`, so its `w` is `guidance_scale - 1`. At 0 and 1 the half that
    would be multiplied by zero is not computed.

    Every row's random numbers come from its own generator, so a row's result is the same in every batch, bitwise at
    equal batch size and to rounding otherwise. A deterministic solver (DDIM, DPM-Solver++, …) draws the first noise and
    nothing more; schedulers of second order (Heun) call the network nearly twice a step.

    Args:
        network: See `PriorNetwork`; its mode (dropout) and gradients are the caller's business.
        scheduler: A diffusers scheduler, left as it is: a copy is set to the steps and, where it is a multistep solver,
            remembers them. Steps between whole numbers are rounded for the network.
        eeg_embeds: `(b, cond_dim)` conditions; None samples unconditionally whatever `guidance_scale` says.
        dim: Size of the sampled embedding.
        generators: One per row, advanced by `num_inference_steps + 1` draws at most.
        guidance_scale: See above.
        num_inference_steps: Denoising steps, at most the schedule's.
        step_args: Further arguments of the scheduler's `step`, such as `eta`.

    Returns:
        `(b, dim)` in the scheduler's (standardised) space.

    Raises:
        ValueError: If there is not exactly one generator per row.
    """
    generators = list(generators)
    if eeg_embeds is not None and len(generators) != len(eeg_embeds):
        raise ValueError(f"sample_embeds needs one generator per row: {len(eeg_embeds)} rows, got {len(generators)}.")
    if not generators:
        raise ValueError("sample_embeds needs at least one row.")
    device = torch.device("cpu") if eeg_embeds is None else eeg_embeds.device
    dtype = torch.float32 if eeg_embeds is None else eeg_embeds.dtype
    schedule = copy.deepcopy(scheduler)
    schedule.set_timesteps(num_inference_steps, device="cpu")
    sample = torch.cat([torch.randn(1, dim, generator=g, dtype=dtype, device=g.device) for g in generators]).to(device)
    sample = sample * schedule.init_noise_sigma
    both = eeg_embeds is not None and guidance_scale not in (0.0, 1.0)
    unconditional = eeg_embeds is None or guidance_scale == 0.0
    rows = len(generators)
    extra: dict[str, Any] = dict(step_args or {})
    if "generator" in inspect.signature(schedule.step).parameters:  # not where nothing is ever drawn
        extra["generator"] = generators
    drop = torch.arange(2 * rows, device=device) < rows
    for step in schedule.timesteps.tolist():
        inputs = schedule.scale_model_input(sample, step)
        timestep = torch.full((rows,), round(step), dtype=torch.long, device=device)
        if both:
            assert eeg_embeds is not None
            halves = network(inputs.repeat(2, 1), timestep.repeat(2), eeg_embeds.repeat(2, 1), drop)
            uncond, cond = halves.chunk(2)
            prediction = uncond + guidance_scale * (cond - uncond)
        else:
            prediction = network(inputs, timestep, None if unconditional else eeg_embeds, None)
        sample = schedule.step(prediction, step, sample, **extra).prev_sample
    return sample
