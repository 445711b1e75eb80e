"""Augmentation of a training batch with random numbers that do not depend on the number of processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eegrecon.data.augment import Augment, drop_channels, mix, mixup_shares, neighbours, shift_in_time
from eegrecon.data.streams import DROP, MIXUP, NOISE, SHIFT, generator_of
from eegrecon.modules.distributed import uniform_rows

Draw = Callable[..., Tensor]  # (purpose, shape=(), normal=False) -> (b, *shape)


def row_draws(b: int, seed: int, epoch: int, batch_idx: int) -> Draw:
    """What is drawn for the rows of one training batch.

    It depends on these numbers, on the purpose and on a row's place in the global batch, and on nothing else.

    Args:
        b: Rows of this rank.
        seed: The run's.
        epoch: Counted from 0.
        batch_idx: Counted from 0.
    """

    def draw(purpose: int, shape: tuple[int, ...] = (), *, normal: bool = False) -> Tensor:
        return uniform_rows(b, generator_of(seed, purpose, epoch, batch_idx), shape, normal=normal)

    return draw


def augmented(batch: dict[str, Any], augment: Augment, mean: Tensor, std: Tensor, draw: Draw) -> dict[str, Any]:
    """A training batch as the network sees it.

    After mixup, `image_index` and `concept_index` are (b, 2): a row shows its own picture and its neighbour's.

    Args:
        batch: eeg (b, n_chans, n_times) in the store's unit, ids (b,), targets.
        augment: What is done.
        mean: (n_chans,) of the training trials.
        std: (n_chans,) likewise.
        draw: This batch's random numbers: `draw(purpose, shape, normal=False)`, (b, *shape) on the CPU.
    """
    eeg = batch["eeg"].to(mean.dtype)
    if augment.time_shift:
        width = 2 * augment.time_shift + 1
        shift = (draw(SHIFT) * width).long().clamp(max=width - 1) - augment.time_shift
        eeg = shift_in_time(eeg, shift.to(eeg.device))
    if augment.channel_dropout:
        eeg = drop_channels(eeg, draw(DROP, (eeg.shape[1],)).to(eeg.device), augment.channel_dropout, mean)
    if augment.noise:
        noise = draw(NOISE, tuple(eeg.shape[1:]), normal=True).to(eeg.device)
        eeg = eeg + augment.noise * std[:, None] * noise
    batch = {**batch, "eeg": eeg}
    if not augment.mixup:
        return batch
    share = mixup_shares(draw(MIXUP), augment.mixup).to(eeg.device)
    other = neighbours(len(eeg), eeg.device)
    targets = {name: mix(value, share) for name, value in batch["targets"].items()}
    both = {name: torch.stack([batch[name], batch[name][other]], dim=1) for name in ("image_index", "concept_index")}
    return {**batch, **both, "eeg": mix(eeg, share), "targets": targets}
