"""Rows of a data set out of memory-mapped partitions: which trial each is, its EEG, and per-channel statistics."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eegrecon.artifacts import load_embeds
from eegrecon.data.eeg_rows import BLOCK, EEGSource, GroupMeans, HeldTrials, SingleTrials, StreamedAverages
from eegrecon.data.memory import SHARE, free_bytes
from eegrecon.data.partition import Partition
from eegrecon.data.selection import Averaging
from eegrecon.data.targets import TargetStore
from eegrecon.errors import DataError

AVERAGED = -1  # the `repetition` of an averaged trial


def rows_of(
    partitions: Sequence[Partition],
    subjects: Sequence[int],
    pictures: np.ndarray,
    average: Averaging,
    seed: int = 0,
) -> tuple[EEGSource, dict[str, np.ndarray]]:
    """The trials of these pictures, subject by subject, in the stores' order.

    Args:
        partitions: One per subject.
        subjects: Their numbers.
        pictures: Wanted `image_index`; those without a trial that is used have no row.
        average: "none": one row a trial, read when asked for. "all": one row a picture, read and averaged now if the
            averages fit into memory. k: one row for every k trials of a picture (see `GroupMeans`).
        seed: For the groups of k.

    Returns:
        EEG by row, and the columns subject, image_index, repetition, each (n,) int64.

    Raises:
        DataError: An averaged value is NaN or infinite, or a picture has fewer than k trials.
    """
    used = [partition.used.sum(1) for partition in partitions]
    rows = [
        np.flatnonzero(np.isin(partition.image_index, pictures) & (count > 0))
        for partition, count in zip(partitions, used, strict=True)
    ]
    store = np.repeat(np.arange(len(partitions)), [len(row) for row in rows])
    row = np.concatenate(rows)
    shown = np.concatenate([partition.image_index[at] for partition, at in zip(partitions, rows, strict=True)])
    counts = np.concatenate([count[at] for count, at in zip(used, rows, strict=True)])
    if average == "all":
        eeg: EEGSource = _averages(partitions, rows, StreamedAverages(partitions, store, row))
        times, repetition = np.ones_like(counts), np.full(len(row), AVERAGED)
    else:
        repetition = np.concatenate([np.nonzero(p.used[at])[1] for p, at in zip(partitions, rows, strict=True)])
        eeg = SingleTrials(partitions, np.repeat(store, counts), np.repeat(row, counts), repetition)
        times = counts
    if isinstance(average, int):
        eeg = GroupMeans(eeg, counts, average, seed)
        times = counts // average
        repetition = np.full(len(eeg), AVERAGED)
    columns = {
        "subject": np.repeat(np.array(subjects)[store], times),
        "image_index": np.repeat(shown, times),
        "repetition": repetition,
    }
    return eeg, columns


def _averages(partitions: Sequence[Partition], rows: Sequence[np.ndarray], streamed: StreamedAverages) -> EEGSource:
    cpu = torch.device("cpu")
    if streamed.extra_bytes(cpu) > SHARE * free_bytes(cpu):
        return streamed
    eeg = np.empty((len(streamed), *partitions[0].shape[2:]), dtype=np.float32)
    stop = 0
    for partition, at in zip(partitions, rows, strict=True):
        start, stop = stop, stop + len(at)
        partition.average(at, out=eeg[start:stop])
    return HeldTrials(torch.from_numpy(eeg))


def permuted_labels(image_index: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Other pictures for rows (n,), by one permutation of all that they show: rows of one picture stay together."""
    pictures, which = np.unique(image_index, return_inverse=True)
    return pictures[torch.randperm(len(pictures), generator=generator).numpy()][which]


def embedded_rows(path: Path, part: str, pictures: np.ndarray, target: TargetStore) -> dict[str, Tensor]:
    """An encoder's embeddings of one part beside the pictures' own.

    Args:
        path: `embeds/<part>.safetensors`.
        part: Its name, for the message.
        pictures: `image_index` of that part of the split.
        target: The pictures' own embeddings.

    Returns:
        The columns eeg_embeds (n, cond_dim), image_embeds (n, dim), subject and image_index (n,) int64.

    Raises:
        DataError: They are of pictures that this split has elsewhere.
    """
    arrays = load_embeds(path)
    index = arrays["image_index"].astype(np.int64)
    foreign = np.setdiff1d(index, pictures)
    if len(foreign):
        raise DataError(
            f"{path} holds {len(foreign)} pictures that are not in the {part} part of this split (the first is "
            f"number {foreign[0]} of images.json): give data.split, data.set and data.subjects the values that the "
            "encoder was trained with."
        )
    return {
        "eeg_embeds": torch.from_numpy(arrays["eeg_embeds"]),
        "image_embeds": torch.from_numpy(target.rows(index)),
        "subject": torch.from_numpy(arrays["subject"].astype(np.int64)),
        "image_index": torch.from_numpy(index),
    }


def training_blocks(eeg: EEGSource, partitions: Sequence[Partition], pictures: np.ndarray) -> Iterator[Tensor]:
    """All training EEG (of epoch 0) in blocks (k, n_chans, n_times) float32, for statistics.

    Averages were checked when they were read; single trials are checked here, all at once.

    Raises:
        DataError: A trial that is used holds NaN or infinity; names picture, repetition and channel.
    """
    if not isinstance(eeg, SingleTrials):
        if isinstance(eeg, GroupMeans):  # the trials themselves: their means would not say which is broken
            for _ in _checked(partitions, pictures):
                pass
        for rows in torch.arange(len(eeg)).split(BLOCK):
            yield eeg.read(rows)
        return
    yield from _checked(partitions, pictures)


def _checked(partitions: Sequence[Partition], pictures: np.ndarray) -> Iterator[Tensor]:
    for partition in partitions:
        rows = np.flatnonzero(np.isin(partition.image_index, pictures) & partition.used.any(1))
        for _, block, used in partition.blocks(rows):
            yield torch.from_numpy(block[used])


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
