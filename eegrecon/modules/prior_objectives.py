"""What a prior learns from a batch: noise to remove (`DiffusionObjective`) or one embedding to hit.

Both take embeddings as the data give them and standardise them with the prior's own scaling. All their randomness comes
from a seed of the step: draws are made for the *global* batch, of which a rank keeps its contiguous piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eegrecon.diffusion.objectives import draw_training, prior_loss, training_target
from eegrecon.diffusion.samplers import stable_seed
from eegrecon.losses.regression import cosine_embedding, mse_embedding

_IMAGE_ONLY_STREAM = 0x494D4147  # keeps these draws apart from the others of a step
_LOSS_DRAWS = 8  # timesteps per validation row, stratified over the schedule; a row's draws are the same every epoch


class PriorObjective(Protocol):
    """The seam between `PriorModule` and what it trains for."""

    def training_loss(
        self, prior: Any, image_embeds: Tensor, eeg_embeds: Tensor, *, seed: int, rank: int, world_size: int
    ) -> Tensor:
        """Scalar loss of one training batch (b, dim), (b, cond_dim)."""
        ...

    def row_losses(
        self,
        prior: Any,
        network: nn.Module,
        image_embeds: Tensor,
        eeg_embeds: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """(b,) validation loss of each row under `network`, which is the prior's own or its moving average."""
        ...


@dataclass(frozen=True, eq=False)
class DiffusionObjective:
    """Denoising (`diffusion.objectives.prior_loss`), for a `ScaledPrior`.

    Args:
        cond_drop: Probability of dropping a row's condition in training, in [0, 1].
        cond_noise: Standard deviation of Gaussian noise on the standardised condition in training; 0 is off.
        image_only: (n, dim) embeddings of pictures without EEG; None: there are none.
        image_only_rate: Probability that a training row makes room for one of them, drawn at random, and so has no
            condition.

    Raises:
        ValueError: On a number outside its range.
    """

    cond_drop: float = 0.1
    cond_noise: float = 0.0
    image_only: Tensor | None = None
    image_only_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cond_drop", "image_only_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability in [0, 1], got {getattr(self, name)}.")
        _check_noise(self.cond_noise)

    def training_loss(
        self, prior: Any, image_embeds: Tensor, eeg_embeds: Tensor, *, seed: int, rank: int, world_size: int
    ) -> Tensor:
        """See `PriorObjective`."""
        image_embeds, without_eeg = self._mixed(image_embeds, seed, rank, world_size)
        target, condition = prior.standardise_target(image_embeds), prior.standardise_cond(eeg_embeds)
        draws = draw_training(
            len(target),
            prior.dim,
            prior.cond_dim,
            num_train_timesteps=prior.scheduler.config.num_train_timesteps,
            cond_drop=self.cond_drop,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        if self.cond_noise:
            condition = condition + self.cond_noise * draws.cond_noise.to(condition)
        return prior_loss(
            prior.network,
            prior.scheduler,
            target,
            condition,
            noise=draws.noise.to(target),
            timestep=draws.timestep.to(target.device),
            cond_mask=(draws.cond_mask | without_eeg).to(target.device),
        )

    def _mixed(self, image_embeds: Tensor, seed: int, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
        """Targets with image-only ones among them, and (b,) bool, on the CPU, where those are."""
        rows = len(image_embeds)
        if self.image_only is None:
            return image_embeds, torch.zeros(rows, dtype=torch.bool)
        generator = torch.Generator().manual_seed(stable_seed(seed, _IMAGE_ONLY_STREAM))
        here = slice(rank * rows, (rank + 1) * rows)
        chosen = (torch.rand(rows * world_size, generator=generator) < self.image_only_rate)[here]
        which = torch.randint(len(self.image_only), (rows * world_size,), generator=generator)[here]
        others = self.image_only[which].to(image_embeds)
        return torch.where(chosen.to(image_embeds.device)[:, None], others, image_embeds), chosen

    def row_losses(
        self,
        prior: Any,
        network: nn.Module,
        image_embeds: Tensor,
        eeg_embeds: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """See `PriorObjective`: over `_LOSS_DRAWS` stratified timesteps."""
        target, condition = prior.standardise_target(image_embeds), prior.standardise_cond(eeg_embeds)
        steps = prior.scheduler.config.num_train_timesteps
        place = torch.stack([torch.rand(_LOSS_DRAWS, generator=g) for g in generators])
        noise = torch.stack([torch.randn(_LOSS_DRAWS, prior.dim, generator=g) for g in generators]).to(target)
        timestep = ((torch.arange(_LOSS_DRAWS) + place) / _LOSS_DRAWS * steps).long().clamp_max(steps - 1)
        losses = [
            nn.functional.mse_loss(
                network(prior.scheduler.add_noise(target, noise[:, k], t), t, condition, None),
                training_target(prior.scheduler, target, noise[:, k], t),
                reduction="none",
            ).mean(dim=1)
            for k, t in enumerate(timestep.T.to(target.device))
        ]
        return torch.stack(losses).mean(dim=0)


@dataclass(frozen=True)
class RegressionObjective:
    """`mse` times the mean squared error per standardised dimension, plus `cosine` times one minus the cosine.

    The cosine is taken between un-standardised embeddings, where `val/prior_cosine` is: in the standardised space it is
    another angle. The best prediction under the mse is the mean of all embeddings that fit the condition, so it is
    shorter than they are (`val/prior_norm_ratio`); under the cosine its length is free.

    Args:
        mse: Weight of the first.
        cosine: Weight of the second.
        cond_noise: Standard deviation of Gaussian noise on the standardised condition in training; 0 is off.

    Raises:
        ValueError: On a negative number, or if both weights are 0.
    """

    mse: float = 1.0
    cosine: float = 0.0
    cond_noise: float = 0.0

    def __post_init__(self) -> None:
        _check_noise(self.cond_noise)
        if min(self.mse, self.cosine) < 0 or self.mse == self.cosine == 0:
            raise ValueError(
                f"mse and cosine are weights of at least 0, one of them above 0, got {self.mse} and {self.cosine}."
            )

    def training_loss(
        self, prior: Any, image_embeds: Tensor, eeg_embeds: Tensor, *, seed: int, rank: int, world_size: int
    ) -> Tensor:
        """See `PriorObjective`."""
        condition = prior.standardise_cond(eeg_embeds)
        if self.cond_noise:
            rows = len(condition)
            noise = torch.randn(rows * world_size, prior.cond_dim, generator=torch.Generator().manual_seed(seed))
            condition = condition + self.cond_noise * noise[rank * rows : (rank + 1) * rows].to(condition)
        return self._losses(prior, prior.network(condition), image_embeds).mean()

    def row_losses(
        self,
        prior: Any,
        network: nn.Module,
        image_embeds: Tensor,
        eeg_embeds: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """See `PriorObjective`; nothing is drawn."""
        return self._losses(prior, network(prior.standardise_cond(eeg_embeds)), image_embeds)

    def _losses(self, prior: Any, predicted: Tensor, image_embeds: Tensor) -> Tensor:
        losses = self.mse * mse_embedding(predicted, prior.standardise_target(image_embeds), reduce=False)
        if self.cosine:
            losses = losses + self.cosine * cosine_embedding(
                prior.restore_target(predicted), image_embeds, reduce=False
            )
        return losses


def _check_noise(cond_noise: float) -> None:
    if cond_noise < 0.0:
        raise ValueError(f"cond_noise is a standard deviation of at least 0, got {cond_noise}.")
