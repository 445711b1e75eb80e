"""EEG by row: where the trials are (memory map, memory, accelerator) and what a row is (a trial, a mean of trials).

Every source gives the same bits for the same row, wherever the trials are.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from eegrecon.data.partition import Partition
from eegrecon.data.streams import GROUPS, generator_of
from eegrecon.errors import DataError

BLOCK = 256  # trials that are copied to a device at once


class EEGSource(Protocol):
    """EEG by row."""

    def __len__(self) -> int:
        """Rows."""
        ...

    def read(self, rows: Tensor) -> Tensor:
        """(b, n_chans, n_times) float32, on the device where the EEG is; `rows` (b,) int64 are on the CPU."""
        ...

    def extra_bytes(self, device: torch.device) -> int:
        """What `on(device)` would take there beyond what is there already."""
        ...

    def on(self, device: torch.device) -> "EEGSource":
        """The same rows, kept on the device (the CPU: in memory)."""
        ...


class HeldTrials:
    """EEG that is in memory, or on an accelerator: (n, n_chans, n_times), float32 or as the store holds it."""

    def __init__(self, eeg: Tensor) -> None:
        self.eeg = eeg

    def __len__(self) -> int:
        """Rows."""
        return len(self.eeg)

    def read(self, rows: Tensor) -> Tensor:
        """(b, n_chans, n_times) float32."""
        return self.eeg[rows.to(self.eeg.device)].float()

    def extra_bytes(self, device: torch.device) -> int:
        """Nothing where it is already."""
        return 0 if self.eeg.device == device else self.eeg.nbytes

    def on(self, device: torch.device) -> "HeldTrials":
        """A copy on the device, or itself."""
        return HeldTrials(self.eeg.to(device))


class _Mapped:
    """What reads from memory maps share.

    Args:
        partitions: One per subject.
        store: (n,) which of them each row is in.
        row: (n,) which picture of it.
    """

    def __init__(self, partitions: Sequence[Partition], store: np.ndarray, row: np.ndarray) -> None:
        self.partitions, self.store, self.row = partitions, store, row
        self.dtype = torch.float32

    def __len__(self) -> int:
        """Rows."""
        return len(self.row)

    def read(self, rows: Tensor) -> Tensor:
        """(b, n_chans, n_times) float32, in memory."""
        at = rows.numpy()
        out = np.empty((len(at), *self.partitions[0].shape[2:]), dtype=np.float32)
        for number, partition in enumerate(self.partitions):
            here = self.store[at] == number
            if here.any():
                out[here] = self._read(partition, at[here])
        return torch.from_numpy(out)

    def _read(self, partition: Partition, at: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def extra_bytes(self, device: torch.device) -> int:
        """All of it."""
        return len(self) * int(np.prod(self.partitions[0].shape[2:])) * self.dtype.itemsize

    def on(self, device: torch.device) -> HeldTrials:
        """Reads everything once, block by block, into an array on the device."""
        held = torch.empty((len(self), *self.partitions[0].shape[2:]), dtype=self.dtype, device=device)
        for rows in torch.arange(len(self)).split(BLOCK):
            held[rows[0] : rows[-1] + 1] = self.read(rows).to(self.dtype)  # exact: it was stored in this type
        return HeldTrials(held)


class SingleTrials(_Mapped):
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
        super().__init__(partitions, store, row)
        self.repetition = repetition
        if all(partition.eeg.dtype == np.float16 for partition in partitions):
            self.dtype = torch.float16

    def _read(self, partition: Partition, at: np.ndarray) -> np.ndarray:
        return partition.read(self.row[at], self.repetition[at])


class StreamedAverages(_Mapped):
    """Averages over a picture's trials, computed when they are asked for: for those that do not fit into memory."""

    def _read(self, partition: Partition, at: np.ndarray) -> np.ndarray:
        return partition.average(self.row[at])


class GroupMeans:
    """Means of k trials of one picture each, of other trials in every epoch.

    In an epoch each picture's trials are dealt at random into as many groups of k as they fill; the rest, fewer than k,
    wait for another epoch. Who is with whom depends on the seed and the epoch alone. Row numbers carry the epoch: row r
    of epoch e is asked for as `r + e * len(self)`, so that a loader's workers need not be told.

    Args:
        trials: Single trials, those of one picture side by side.
        counts: How many each picture has, (n_pictures,).
        size: k.
        seed: The run's seed.

    Raises:
        DataError: A picture has fewer than k trials.
    """

    def __init__(self, trials: EEGSource, counts: np.ndarray, size: int, seed: int) -> None:
        if len(counts) and (fewest := int(counts.min())) < size:
            raise DataError(
                f"data.repetitions averages over {size} trials, but a picture has only {fewest} that are used: average "
                "over fewer, or use more sessions and repetitions."
            )
        self.trials, self.counts, self.size, self.seed = trials, counts, size, seed
        self.n = int((counts // size).sum())
        self._epoch, self._table = -1, torch.empty(0)

    def __len__(self) -> int:
        """Rows of one epoch."""
        return self.n

    def table(self, epoch: int) -> Tensor:
        """Which trials make each row of an epoch, (n, k) int64."""
        if epoch != self._epoch:
            picture = np.repeat(np.arange(len(self.counts)), self.counts)
            lot = torch.rand(len(picture), dtype=torch.float64, generator=generator_of(self.seed, GROUPS, epoch))
            dealt = np.lexsort((lot.numpy(), picture))
            place = np.arange(len(picture)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
            full = place < (self.counts // self.size * self.size)[picture]
            self._epoch, self._table = epoch, torch.from_numpy(dealt[full].reshape(self.n, self.size))
        return self._table

    def read(self, rows: Tensor) -> Tensor:
        """(b, n_chans, n_times) float32; rows may be of several epochs."""
        epochs = rows // self.n
        if len(rows) and not bool((epochs == epochs[0]).all()):
            return torch.cat([self.read(row) for row in rows.split(1)])
        trials = self.table(int(epochs[0]) if len(rows) else 0)[rows % self.n]
        total = self.trials.read(trials[:, 0])
        for column in range(1, self.size):
            total += self.trials.read(trials[:, column])
        # A product, as an accelerator divides by a number in the same way and the bits must be those of the CPU.
        return total.mul_(1 / self.size)

    def extra_bytes(self, device: torch.device) -> int:
        """Of the trials."""
        return self.trials.extra_bytes(device)

    def on(self, device: torch.device) -> "GroupMeans":
        """The same groups of trials that are kept on the device."""
        return GroupMeans(self.trials.on(device), self.counts, self.size, self.seed)
