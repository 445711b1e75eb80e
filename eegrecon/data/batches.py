"""From rows to batches of tensors: whole batches are indexed at once, never item by item.

A dataset here has `__getitems__(rows) -> batch`, which the loader calls with the list that a batch sampler yields; on
two cores this leaves the cores to the network.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from eegrecon.data.partition import Partition
from eegrecon.errors import ConfigError

Batch = dict[str, Any]


class GlobalBatchSampler(Sampler[list[int]]):
    """Shuffled training batches: the same global batches whatever the number of processes, workers or restarts.

    The order of epoch e is a permutation drawn from (seed, e) alone. Each global batch is cut into `world_size`
    contiguous pieces, one a rank, so the ranks' pieces put together in rank order are the batch of a single process.
    The last incomplete global batch is dropped. Needs `Trainer(use_distributed_sampler=False)`.

    Args:
        n: Rows.
        global_batch: Rows per optimisation step over all ranks.
        rank: This process.
        world_size: Number of processes.
        seed: The run's seed.
        epoch: The first epoch; the trainer moves it on through `set_epoch`.

    Raises:
        ConfigError: The batch cannot be shared equally, or there are too few rows for one batch.
    """

    def __init__(
        self, n: int, global_batch: int, rank: int = 0, world_size: int = 1, seed: int = 0, epoch: int = 0
    ) -> None:
        if global_batch % world_size:
            raise ConfigError(
                f"loader.batch_size {global_batch} is the batch of all {world_size} processes together and must be a "
                f"multiple of {world_size}: choose another batch size or number of devices."
            )
        if n < global_batch:
            raise ConfigError(
                f"loader.batch_size is {global_batch}, but there are only {n} training rows, and an incomplete batch "
                "is dropped: choose a smaller batch."
            )
        self.n, self.global_batch, self.rank, self.world_size = n, global_batch, rank, world_size
        self.seed, self.epoch = seed, epoch

    @property
    def sampler(self) -> "GlobalBatchSampler":
        """Itself: Lightning looks for `set_epoch` on a batch sampler's `sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.n // self.global_batch

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's piece of each global batch."""
        order = torch.randperm(self.n, generator=generator_of(self.seed, self.epoch)).tolist()
        share = self.global_batch // self.world_size
        for start in range(0, len(self) * self.global_batch, self.global_batch):
            mine = start + self.rank * share
            yield order[mine : mine + share]


class ShardBatchSampler(Sampler[list[int]]):
    """Rows in order, shared among ranks in contiguous shards of equal length.

    Where the rows do not divide, rows from the start are repeated at the end, so that every rank makes as many batches
    as the others; whoever scores the rows drops the repeats by their ids.

    Args:
        n: Rows.
        global_batch: Rows per batch over all ranks (a rank takes its share, at least 1).
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, n: int, global_batch: int, rank: int = 0, world_size: int = 1) -> None:
        share = -(-n // world_size)
        self.rows = [i % n for i in range(rank * share, (rank + 1) * share)]
        self.batch = max(1, global_batch // world_size)

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.rows) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches; the last may be smaller."""
        for start in range(0, len(self.rows), self.batch):
            yield self.rows[start : start + self.batch]


class EEGSource(Protocol):
    """EEG by row."""

    def __len__(self) -> int:
        """Rows."""
        ...

    def read(self, rows: Tensor) -> Tensor:
        """(b, n_chans, n_times) float32."""
        ...


class AveragedTrials:
    """EEG that is in memory already: (n, n_chans, n_times) float32."""

    def __init__(self, eeg: Tensor) -> None:
        self.eeg = eeg

    def __len__(self) -> int:
        """Rows."""
        return len(self.eeg)

    def read(self, rows: Tensor) -> Tensor:
        """(b, n_chans, n_times) float32."""
        return self.eeg[rows]


class SingleTrials:
    """Single trials, read from the memory map when they are asked for.

    Args:
        partitions: One per subject.
        store: (n,) which of them each row is in.
        row: (n,) which picture of it.
        repetition: (n,) which repetition.
    """

    def __init__(
        self, partitions: Sequence[Partition], store: np.ndarray, row: np.ndarray, repetition: np.ndarray
    ) -> None:
        self.partitions, self.store, self.row, self.repetition = partitions, store, row, repetition

    def __len__(self) -> int:
        """Rows."""
        return len(self.row)

    def read(self, rows: Tensor) -> Tensor:
        """(b, n_chans, n_times) float32."""
        at = rows.numpy()
        out = np.empty((len(at), *self.partitions[0].shape[2:]), dtype=np.float32)
        for number, partition in enumerate(self.partitions):
            here = self.store[at] == number
            if here.any():
                out[here] = partition.read(self.row[at[here]], self.repetition[at[here]])
        return torch.from_numpy(out)


class TrialDataset(Dataset[Batch]):
    """Trials with their targets.

    Batches: {eeg (b, n_chans, n_times) float32, subject, image_index, concept_index, repetition (b,) int64, targets
    {name: (b, *dim) float32}[, gallery (b,) bool]}.

    Args:
        eeg: EEG by row.
        columns: subject, image_index, concept_index, repetition, and gallery if wanted; each (n,).
        targets: Name to (n_pictures, *dim).
        target_row: (n,) which row of the targets belongs to each trial.
    """

    def __init__(
        self, eeg: EEGSource, columns: Mapping[str, Tensor], targets: Mapping[str, Tensor], target_row: Tensor
    ) -> None:
        self.eeg, self.columns, self.targets, self.target_row = eeg, dict(columns), dict(targets), target_row

    def __len__(self) -> int:
        """Rows."""
        return len(self.target_row)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """One batch."""
        at = torch.as_tensor(rows, dtype=torch.int64)
        return {
            "eeg": self.eeg.read(at),
            **{name: column[at] for name, column in self.columns.items()},
            "targets": {name: values[self.target_row[at]] for name, values in self.targets.items()},
        }

    def __getitem__(self, row: int) -> Batch:
        """A batch of one row."""
        return self.__getitems__([row])


class RowDataset(Dataset[Batch]):
    """Batches of plain columns: every tensor (n, …) is indexed alike."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values())))

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """One batch."""
        at = torch.as_tensor(rows, dtype=torch.int64)
        return {name: column[at] for name, column in self.columns.items()}

    def __getitem__(self, row: int) -> Batch:
        """A batch of one row."""
        return self.__getitems__([row])


def whole(dataset: TrialDataset | RowDataset) -> Batch:
    """All rows of a dataset as one batch."""
    return dataset.__getitems__(range(len(dataset)))


def generator_of(*numbers: int) -> torch.Generator:
    """A torch generator whose stream depends on all these numbers (each ≥ 0) and on their order and number."""
    seed = int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(seed)


def loader(
    dataset: TrialDataset | RowDataset, batch_sampler: Sampler[list[int]], num_workers: int, seed: int
) -> DataLoader[Batch]:
    """A loader that hands whole batches through; it draws nothing from the global random stream."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=as_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=generator_of(seed),
    )


def as_is(batch: Any) -> Batch:
    """The batch, which is collated already."""
    return batch
