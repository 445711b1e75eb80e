"""Which diffusers scheduler samples: any of `config.SCHEDULERS`, over the noise schedule that was trained on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eegrecon.config import SCHEDULERS
from eegrecon.errors import ConfigError
from eegrecon.registry import lookup

# What the network was trained with, and so cannot be another while sampling.
TRAINED = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "clip_sample",
    "rescale_betas_zero_snr",
)  # fmt: skip


@dataclass(frozen=True)
class Solver:
    """A scheduler to sample with, and what each of its steps is told.

    Attributes:
        scheduler: A diffusers scheduler; never changed, `diffusion.samplers.sample_embeds` copies it.
        step_args: Further arguments of its `step`, such as DDIM's `eta`.
    """

    scheduler: Any
    step_args: Mapping[str, Any] = field(default_factory=dict)


def build_solver(trained: Any, choice: Any) -> Solver:
    """The scheduler that `sample.scheduler` names, `from_config` of the one that was trained with.

    Betas, prediction type, spacing of the steps and clipping are therefore kept; `args` may set everything else that
    its constructor takes (`solver_order`, `algorithm_type: sde-dpmsolver++`, `timestep_spacing`, …) and, as in
    diffusers' pipelines, `eta` where its step takes one (DDIM: 0 deterministic, the default; 1 ancestral).

    Args:
        trained: From `diffusion.objectives.build_scheduler`.
        choice: `name` and `args`.

    Raises:
        ConfigError: The name is unknown, an argument does not fit, or the training scheduler clips and this one cannot.
    """
    build: Any = lookup(SCHEDULERS, choice.name)
    accepted = [name for name in inspect.signature(build).parameters if name not in TRAINED]
    accepted += ["eta"] * takes(build.step, "eta")
    problems = []
    for name in choice.args:
        if name in TRAINED:
            problems.append(f"{name!r} is what the prior was trained with and belongs into its block diffusion")
        elif name not in accepted:
            problems.append(f"{name!r} is not an argument (it takes {', '.join(accepted)})")
    if trained.config.clip_sample and not takes(build, "clip_sample"):
        problems.append("it cannot clip, but diffusion.clip_sample is true: choose ddpm or ddim")
    if problems:
        raise ConfigError(f"sample.scheduler {choice.name!r} does not fit: {'; '.join(problems)}.")
    args = dict(choice.args)
    step_args = {"eta": args.pop("eta")} if "eta" in args else {}
    try:
        return Solver(build.from_config(trained.config, **args), step_args)
    except (TypeError, ValueError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"sample.scheduler {choice.name!r} refuses {choice.args}: {error}") from error


def takes(function: Any, name: str) -> bool:
    """Whether a function or class has an argument of this name."""
    return name in inspect.signature(function).parameters
