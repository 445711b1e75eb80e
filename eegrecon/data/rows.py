"""Rows of a data set out of memory-mapped partitions: which trial each is, its EEG, and per-channel statistics."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from eegrecon.data.batches import AveragedTrials, EEGSource, SingleTrials
from eegrecon.data.partition import Partition
from eegrecon.errors import DataError

AVERAGED = -1  # the `repetition` of an averaged trial


def rows_of(
    partitions: Sequence[Partition], subjects: Sequence[int], pictures: np.ndarray, *, average: bool
) -> tuple[EEGSource, dict[str, np.ndarray]]:
    """The trials of these pictures, subject by subject, in the stores' order.

    Args:
        partitions: One per subject.
        subjects: Their numbers.
        pictures: Wanted `image_index`.
        average: One row a picture (read and averaged now) or one row a trial (read when asked for).

    Returns:
        EEG by row, and the columns subject, image_index, repetition, each (n,) int64.

    Raises:
        DataError: An averaged value is NaN or infinite.
    """
    rows = [np.flatnonzero(np.isin(partition.image_index, pictures)) for partition in partitions]
    shown = [partition.image_index[row] for partition, row in zip(partitions, rows, strict=True)]
    if average:
        counts = [len(row) for row in rows]
        eeg = np.empty((sum(counts), *partitions[0].shape[2:]), dtype=np.float32)
        for partition, row, stop in zip(partitions, rows, np.cumsum(counts), strict=True):
            partition.average(row, out=eeg[stop - len(row) : stop])
        columns = {
            "subject": np.repeat(np.array(subjects), counts),
            "image_index": np.concatenate(shown),
            "repetition": np.full(len(eeg), AVERAGED),
        }
        return AveragedTrials(torch.from_numpy(eeg)), columns
    repeats = [partition.shape[1] for partition in partitions]
    counts = [len(row) * k for row, k in zip(rows, repeats, strict=True)]
    store = np.repeat(np.arange(len(partitions)), counts)
    row = np.concatenate([np.repeat(r, k) for r, k in zip(rows, repeats, strict=True)])
    repetition = np.concatenate([np.tile(np.arange(k), len(r)) for r, k in zip(rows, repeats, strict=True)])
    columns = {
        "subject": np.array(subjects)[store],
        "image_index": np.concatenate([np.repeat(index, k) for index, k in zip(shown, repeats, strict=True)]),
        "repetition": repetition,
    }
    return SingleTrials(partitions, store, row, repetition), columns


def training_blocks(eeg: EEGSource, partitions: Sequence[Partition], pictures: np.ndarray) -> Iterator[Tensor]:
    """All training EEG in blocks (k, n_chans, n_times) float32, for statistics.

    Averages are in memory and were checked when they were read; single trials are checked here, all at once.

    Raises:
        DataError: A single trial holds NaN or infinity; names picture, repetition and channel.
    """
    if isinstance(eeg, AveragedTrials):
        yield from eeg.eeg.split(256)
        return
    for partition in partitions:
        for _, block in partition.blocks(np.flatnonzero(np.isin(partition.image_index, pictures))):
            yield torch.from_numpy(block).flatten(0, 1)


def channel_moments(blocks: Iterable[Tensor], ch_names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over rows and time: two (n_chans,) float32 tensors.

    Args:
        blocks: Each (k, n_chans, n_times) float32; sums over them are float64.
        ch_names: For messages.

    Raises:
        DataError: A channel is constant.
    """
    total = torch.zeros(len(ch_names), dtype=torch.float64)
    square, shift, count = total.clone(), None, 0
    for block in blocks:
        # Sums around a first guess of the mean: of two squares of nearly one size, little would be left in the end.
        shift = block.mean((0, 2)) if shift is None else shift
        centred = block - shift[:, None]
        total += centred.sum((0, 2), dtype=torch.float64)
        square += centred.square_().sum((0, 2), dtype=torch.float64)
        count += centred.shape[0] * centred.shape[2]
    assert shift is not None
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt().float()
    mean += shift.double()
    # A constant leaves only rounding behind: 1e-6 of its own size is that of float32.
    constant = std <= 1e-6 * mean.abs()
    if flat := [name for name, value in zip(ch_names, constant.tolist(), strict=True) if value]:
        raise DataError(
            f"The training EEG is constant in channel {', '.join(flat)}, so it cannot be standardised: leave it out "
            "with data.channels or repair the store."
        )
    return mean.float(), std
