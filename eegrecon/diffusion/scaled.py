"""A prior network with the standardisation of its two spaces: what stage 2's weights file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eegrecon.diffusion.samplers import sample_embeds
from eegrecon.diffusion.schedulers import Solver, build_solver
from eegrecon.errors import ConfigError

TARGET_SCALES = ("std", "none")
COND_SCALES = ("unit", "std")
TRIED_NUMBERS = 1000  # their spread is known to 2 %
# Spread of what should have spread 1. Of the registry's schedulers, with steps from 1 on, the widest that is sound ends
# at 1.16 (Karras sigmas); heun_discrete over the cosine schedule at 305 in 5 steps, 2.4 in 30 and 1.35 in 50.
WIDEST = 1.5


class ScaledNetwork(nn.Module):
    """A network and the affine maps from data to the space it works in; `ScaledPrior` and `PointPrior` sample from it.

    Diffusion adds noise of variance 1 per dimension, so a target must have about that variance. L2-normalised vectors
    have variance `1 / dim`: unscaled, a 1024-d CLIP vector has a standard deviation of 0.03 and drowns in the first
    noise steps (lucidrains/DALLE2-pytorch#60 multiplies by `sqrt(dim)`); un-normalised CLIP has a few dimensions near
    13, which a clipping sampler cuts (`diffusion.objectives.build_scheduler`). `fit` with "std"
    centres and scales each dimension by the training split's own moments, which covers both; `sample` undoes it.

    The condition's length is another trap. InfoNCE teaches an encoder directions only, so nothing fixes the length of
    its embedding, and where that grows with the noise in the EEG, the mean of 80 test repetitions comes out shorter
    than the mean of 4 training ones: a prior that reads length takes it for a weak condition. "unit" divides every
    condition by its own length first (a toy encoder without output normalisation: two-way identification of sampled
    test embeddings 73 instead of 63 %, guidance 1; the pocket ATM-S keeps its length and does not care). ATM
    feeds it raw.

    Buffers, saved with the weights: `target_mean`, `target_scale` `(dim,)`; `cond_mean`, `cond_scale`
    `(cond_dim,)`, `cond_unit` `()` bool. Before `fit` they are 0, 1 and false.

    Args:
        network: The network.
        dim: Size of the target.
        cond_dim: Size of the condition.
    """

    target_mean: Tensor
    target_scale: Tensor
    cond_mean: Tensor
    cond_scale: Tensor
    cond_unit: Tensor

    def __init__(self, network: nn.Module, *, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.network, self.dim, self.cond_dim = network, int(dim), int(cond_dim)
        for name, size in (("target", self.dim), ("cond", self.cond_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.register_buffer("cond_unit", torch.tensor(False))

    def fit(
        self, image_embeds: Tensor, eeg_embeds: Tensor, target_scale: str = "std", cond_scale: str = "unit"
    ) -> None:
        """Sets the buffers from the training split; a dimension that never varies keeps scale 1.

        Args:
            image_embeds: `(n, dim)` training targets.
            eeg_embeds: `(n, cond_dim)` training conditions; always standardised per dimension.
            target_scale: "std" per dimension, or "none": targets as they are, as ATM does.
            cond_scale: "unit" divides each condition by its length before standardising, "std" does not.

        Raises:
            ValueError: On another `target_scale` or `cond_scale`, or fewer than two rows.
        """
        if target_scale not in TARGET_SCALES:
            raise ValueError(f"target_scale must be one of {', '.join(TARGET_SCALES)}, got {target_scale!r}.")
        if cond_scale not in COND_SCALES:
            raise ValueError(f"cond_scale must be one of {', '.join(COND_SCALES)}, got {cond_scale!r}.")
        if min(len(image_embeds), len(eeg_embeds)) < 2:
            raise ValueError("ScaledPrior.fit needs at least two training rows to measure a spread.")
        self.cond_unit.fill_(cond_scale == "unit")
        eeg_embeds = self._directed(eeg_embeds)
        for name, rows, wanted in (("target", image_embeds, target_scale == "std"), ("cond", eeg_embeds, True)):
            if not wanted:
                continue
            spread, mean = torch.std_mean(rows.double(), dim=0)
            spread = torch.where(spread > 1e-6 * spread.max().clamp_min(1e-12), spread, torch.ones_like(spread))
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_scale").copy_(spread)

    def standardise_target(self, image_embeds: Tensor) -> Tensor:
        """`(b, dim)` image embeddings to the space of the noise."""
        return (image_embeds - self.target_mean) / self.target_scale

    def restore_target(self, standardised: Tensor) -> Tensor:
        """The inverse of `standardise_target`."""
        return standardised * self.target_scale + self.target_mean

    def standardise_cond(self, eeg_embeds: Tensor) -> Tensor:
        """`(b, cond_dim)` EEG embeddings to mean 0, variance 1 per dimension over the training split."""
        return (self._directed(eeg_embeds) - self.cond_mean) / self.cond_scale

    def _directed(self, eeg_embeds: Tensor) -> Tensor:
        return torch.where(self.cond_unit, nn.functional.normalize(eeg_embeds, dim=-1), eeg_embeds)


class ScaledPrior(ScaledNetwork):
    """A diffusion prior: network, noise schedule and scaling.

    Args:
        network: See `diffusion.objectives.PriorNetwork`.
        scheduler: From `diffusion.objectives.build_scheduler`: it trains and, until `use_scheduler`, samples.
        dim: Size of the target.
        cond_dim: Size of the condition.
    """

    def __init__(self, network: nn.Module, scheduler: Any, *, dim: int, cond_dim: int) -> None:
        super().__init__(network, dim=dim, cond_dim=cond_dim)
        self.scheduler, self.solver = scheduler, Solver(scheduler)

    def use_scheduler(self, choice: Any, num_inference_steps: int | None = None) -> None:
        """Sample with another scheduler from now on; the one that was trained with stays `scheduler`.

        Args:
            choice: `name` and `args`, see `diffusion.schedulers.build_solver`.
            num_inference_steps: If given, so many steps are tried out with a perfect network for standard normal
                targets (`exact_network`), which must not end far wider than these. Narrower is no fault: the fewer the
                steps, the nearer every sampler stays to the mean.

        Raises:
            ConfigError: It does not fit, cannot make these steps, or is unstable with them.
        """
        self.solver = build_solver(self.scheduler, choice)
        if num_inference_steps is None:
            return
        try:
            sampled = sample_embeds(
                exact_network(self.scheduler),
                self.solver.scheduler,
                None,
                dim=TRIED_NUMBERS,
                generators=[torch.Generator().manual_seed(0)],
                num_inference_steps=num_inference_steps,
                step_args=self.solver.step_args,
            )
        except (ArithmeticError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            problem = " ".join(str(error).split())
        else:
            spread = float(sampled.std())
            problem = "" if bool(sampled.isfinite().all()) else "it ends in NaN or infinite numbers"
            if not problem and spread > WIDEST:
                problem = (
                    f"over the beta_schedule {self.scheduler.config.beta_schedule!r} it is unstable and would turn a "
                    f"perfect network's spread of 1 into {spread:.3g}; take more steps or another scheduler"
                )
        if problem:
            raise ConfigError(
                f"sample.scheduler {choice.name!r} with {choice.args} cannot make {num_inference_steps} steps for the "
                f"prediction type {self.scheduler.config.prediction_type!r}: {problem.rstrip('.')}."
            )

    @torch.no_grad()
    def sample(
        self,
        eeg_embeds: Tensor,
        *,
        generators: Sequence[torch.Generator],
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        network: nn.Module | None = None,
    ) -> Tensor:
        """Samples image embeddings for EEG embeddings; see `diffusion.samplers.sample_embeds`.

        Args:
            eeg_embeds: `(b, cond_dim)` as the encoder stage exports them.
            generators: One per row (`diffusion.samplers.row_generators`).
            guidance_scale: 0 unconditional, 1 conditional, more guided; the paper's w plus 1.
            num_inference_steps: Denoising steps.
            network: Another than its own, such as the moving average of its weights.

        Returns:
            `pred_image_embeds (b, dim)` in the target's own, un-standardised space.
        """
        with evaluating(self.network if network is None else network) as chosen:
            sampled = sample_embeds(
                chosen,
                self.solver.scheduler,
                self.standardise_cond(eeg_embeds),
                dim=self.dim,
                generators=generators,
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                step_args=self.solver.step_args,
            )
        return self.restore_target(sampled)


def exact_network(scheduler: Any) -> Any:
    """What a perfectly trained network says where targets are standard normal, by the scheduler's `prediction_type`.

    A noisy vector `sqrt(a) clean + sqrt(1 - a) noise` then has variance 1 at every step, so the means of its parts are
    `sqrt(a)` and `sqrt(1 - a)` times it, and the mean velocity is 0.
    """
    kind, alphas = scheduler.config.prediction_type, scheduler.alphas_cumprod

    def network(noisy: Tensor, timestep: Tensor, *_: Any) -> Tensor:
        a = alphas[timestep.clamp(0, len(alphas) - 1)][:, None].to(noisy)  # Karras' spacing may round beyond the last
        share = {"sample": a.sqrt(), "epsilon": (1 - a).sqrt()}
        return share[kind] * noisy if kind in share else torch.zeros_like(noisy)

    return network


class PointPrior(ScaledNetwork):
    """A prior that says one embedding a condition: `mlp`, `ridge` and `none`, called like a diffusion prior.

    Args:
        network: `eeg_embeds (b, cond_dim) -> (b, dim)`, both standardised.
        dim: Size of the target.
        cond_dim: Size of the condition.
    """

    def use_scheduler(self, choice: Any, num_inference_steps: int | None = None) -> None:
        """Ignored: there are no steps; see `sample`."""

    @torch.no_grad()
    def sample(
        self,
        eeg_embeds: Tensor,
        *,
        generators: Sequence[torch.Generator] | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        network: nn.Module | None = None,
    ) -> Tensor:
        """The image embedding of each EEG embedding; every draw is the same.

        What only a diffusion has is taken, so that whoever calls a prior need not ask which one it is, and ignored.

        Args:
            eeg_embeds: `(b, cond_dim)` as the encoder stage exports them.
            generators: Ignored: nothing is drawn.
            guidance_scale: Ignored: there is no unconditional half.
            num_inference_steps: Ignored: there is one step.
            network: Another than its own, such as the moving average of its weights.

        Returns:
            `pred_image_embeds (b, dim)` in the target's own, un-standardised space.
        """
        with evaluating(self.network if network is None else network) as chosen:
            return self.restore_target(chosen(self.standardise_cond(eeg_embeds)))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode, and afterwards in the mode it had."""
    was_training = network.training
    network.eval()
    try:
        yield network
    finally:
        network.train(was_training)
