"""Augmentation of a training batch with random numbers that do not depend on the number of processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eegrecon.data.augment import Augment, drop_channels, mix, mixup_shares, neighbours, shift_in_time
from eegrecon.data.streams import DROP, MIXUP, NOISE, SHIFT, generator_of
from eegrecon.modules.distributed import all_gather_rows, is_distributed, rank, uniform_rows

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

    After mixup, `image_index` and `concept_index` are (b, 2): a row shows its own picture and its neighbour's, which is
    the same row of the global batch whatever the number of processes (each holds as many rows).

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
    uniform = draw(MIXUP).to(eeg.device)
    # Pairs are of the global batch: where a process holds an odd number of rows, some have their neighbour elsewhere.
    whole = is_distributed() and len(eeg) % 2 == 1
    rows = slice(rank() * len(eeg), (rank() + 1) * len(eeg)) if whole else slice(None)

    def pool(value: Tensor) -> Tensor:
        return all_gather_rows(value) if whole else value

    share = mixup_shares(pool(uniform).cpu(), augment.mixup).to(eeg.device)
    other = neighbours(len(share), eeg.device)[rows]
    targets = {name: mix(pool(value), share)[rows] for name, value in batch["targets"].items()}
    names = ("image_index", "concept_index")
    both = {name: torch.stack([batch[name], pool(batch[name])[other]], dim=1) for name in names}
    return {**batch, **both, "eeg": mix(pool(eeg), share)[rows], "targets": targets}
