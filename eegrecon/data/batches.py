"""From rows to batches of tensors: whole batches are indexed at once, never item by item.

A dataset here has `__getitems__(rows) -> batch`, which the loader calls with the list that a batch sampler yields; on
two cores this leaves the cores to the network.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from eegrecon.data.eeg_rows import EEGSource
from eegrecon.data.memory import SHARE, free_bytes
from eegrecon.data.streams import generator_of
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
        count_on: Number the rows of epoch e from e · n on, for a data set whose rows differ between epochs.
        key: What the config calls the batch, for messages.

    Raises:
        ConfigError: The batch cannot be shared equally, or there are too few rows for one batch.
    """

    def __init__(
        self,
        n: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        epoch: int = 0,
        count_on: bool = False,
        key: str = "loader.batch_size",
    ) -> None:
        if global_batch % world_size:
            raise ConfigError(
                f"{key} {global_batch} is the batch of all {world_size} processes together and must be a "
                f"multiple of {world_size}: choose another batch size or number of devices."
            )
        if n < global_batch:
            raise ConfigError(
                f"{key} is {global_batch}, but there are only {n} training rows, and an incomplete batch "
                "is dropped: choose a smaller batch."
            )
        self.n, self.global_batch, self.rank, self.world_size = n, global_batch, rank, world_size
        self.seed, self.epoch, self.count_on = seed, epoch, count_on

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
        order = torch.randperm(self.n, generator=generator_of(self.seed, self.epoch))
        numbers = (order + self.epoch * self.n if self.count_on else order).tolist()
        share = self.global_batch // self.world_size
        for start in range(0, len(self) * self.global_batch, self.global_batch):
            mine = start + self.rank * share
            yield numbers[mine : mine + share]


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

    def __getitems__(self, rows: Sequence[int] | Tensor) -> Batch:
        """One batch; a number from `len` on is a row of a later epoch (see `GroupMeans`)."""
        numbers = torch.as_tensor(rows, dtype=torch.int64)
        at = (numbers % len(self)).to(self.target_row.device)
        return {
            "eeg": self.eeg.read(numbers),
            **{name: column[at] for name, column in self.columns.items()},
            "targets": {name: values[self.target_row[at]] for name, values in self.targets.items()},
        }

    def __getitem__(self, row: int) -> Batch:
        """A batch of one row."""
        return self.__getitems__([row])

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return self.target_row.device

    def extra_bytes(self, device: torch.device) -> int:
        """What `on(device)` would take there beyond what is there already."""
        tensors = [*self.columns.values(), *self.targets.values(), self.target_row]
        return self.eeg.extra_bytes(device) + _bytes_to_copy(tensors, device)

    def on(self, device: torch.device) -> "TrialDataset":
        """The same rows, kept on the device (the CPU: in memory), where batches are then made."""
        columns, targets = (_on(values, device) for values in (self.columns, self.targets))
        return TrialDataset(self.eeg.on(device), columns, targets, self.target_row.to(device))


class RowDataset(Dataset[Batch]):
    """Batches of plain columns: every tensor (n, …) is indexed alike."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values())))

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """One batch."""
        at = torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        return {name: column[at] for name, column in self.columns.items()}

    def __getitem__(self, row: int) -> Batch:
        """A batch of one row."""
        return self.__getitems__([row])

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return next(iter(self.columns.values())).device

    def extra_bytes(self, device: torch.device) -> int:
        """What `on(device)` would take there beyond what is there already."""
        return _bytes_to_copy(self.columns.values(), device)

    def on(self, device: torch.device) -> "RowDataset":
        """The same rows, kept on the device."""
        return RowDataset(_on(self.columns, device))


def whole(dataset: TrialDataset | RowDataset) -> Batch:
    """All rows of a dataset as one batch."""
    return dataset.__getitems__(range(len(dataset)))


def loader(
    dataset: TrialDataset | RowDataset, batch_sampler: Sampler[list[int]], num_workers: int, seed: int
) -> DataLoader[Batch]:
    """A loader that hands whole batches through; it draws nothing from the global random stream.

    Rows on an accelerator are put together there, by this process: workers would have to copy them.
    """
    here = dataset.device.type == "cpu"
    workers = num_workers if here else 0
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=as_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=here and torch.cuda.is_available(),
        generator=generator_of(seed),
    )


def _bytes_to_copy(tensors: Iterable[Tensor], device: torch.device) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor.device != device)


def _on(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def as_is(batch: Any) -> Batch:
    """The batch, which is collated already."""
    return batch


def held_on(
    dataset: TrialDataset | RowDataset, device: torch.device, wanted: Literal["auto"] | bool, what: str, processes: int
) -> tuple[TrialDataset | RowDataset, str]:
    """The rows on the device if they are to be kept there and fit, else as they are; and what to tell the user.

    Args:
        dataset: The rows.
        device: Where they would be kept; the CPU: in memory.
        wanted: "auto": if they fit into `SHARE` of what is free there; or whether they must.
        what: They, for messages.
        processes: How many processes of this machine each keep their own.

    Raises:
        ConfigError: They must be kept there and do not fit.
    """
    taken = dataset.extra_bytes(device) * (processes if device.type == "cpu" else 1)
    if wanted is False or not taken:
        return dataset, ""
    free = free_bytes(device)
    text = f"{what} take {taken / 1e9:.2f} GB, and {device} has {free / 1e9:.2f} GB free"
    if taken <= SHARE * free:
        return dataset.on(device), "" if device.type == "cpu" else f"{text}: they are kept there."
    if wanted is True:
        raise ConfigError(f"{text}, of which data may take {SHARE:.0%}: set loader.on_device to auto or false.")
    return dataset, f"{text}: they are read batch by batch."
