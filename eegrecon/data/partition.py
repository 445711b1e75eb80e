"""One side of a trial store: memory-mapped EEG, read in the channels and window that were asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eegrecon.data.images import ImageSet
from eegrecon.errors import DataError

FIX = "`eegrecon prepare-data`"
BLOCK = 256  # trials per block when a whole partition is read: 256 × 63 × 250 float32 values are 16 MB


@dataclass(frozen=True)
class Partition:
    """One side of a store, channels and window chosen but nothing read yet.

    Attributes:
        eeg: Memory map (n_images, n_repetitions, all channels, all samples), usually float16, in the store's unit.
        image_index: (n_images,) int64, position in `images.json`.
        session: (n_images, n_repetitions), the recording session of each trial.
        channels: Rows of the channel axis that are read, in the order asked for.
        window: Slice of the time axis that is read.
        path: The `_eeg.npy` file, for messages.
        ch_names: Names of `channels`.
        images: For image ids in messages.
        keep: (n_images, n_repetitions) bool, the trials that are used; None: all. The others are never read for
            averages, and what they hold does not matter.
    """

    eeg: np.ndarray
    image_index: np.ndarray
    session: np.ndarray
    channels: list[int]
    window: slice
    path: Path
    ch_names: list[str]
    images: ImageSet | None = None
    keep: np.ndarray | None = None

    @property
    def used(self) -> np.ndarray:
        """(n_images, n_repetitions) bool: the trials that are used."""
        return np.ones(self.eeg.shape[:2], dtype=bool) if self.keep is None else self.keep

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n_images, n_repetitions, n_chans, n_times) after the choice of channels and window."""
        return (*self.eeg.shape[:2], len(self.channels), self.window.stop - self.window.start)

    def read(self, rows: np.ndarray, repetitions: np.ndarray | None = None) -> np.ndarray:
        """Single trials as float32: (b, n_chans, n_times), or (b, n_repetitions, n_chans, n_times) without repetitions.

        Used or not; rows and repetitions are broadcast against each other. Not checked for NaN: see `blocks`.
        """
        chosen = self.eeg[rows] if repetitions is None else self.eeg[rows, repetitions]
        chosen = chosen[..., self.window]
        if self.channels != list(range(self.eeg.shape[2])):
            chosen = chosen[..., self.channels, :]
        return np.asarray(chosen, dtype=np.float32)

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The trials of these rows (default: all), those that are used checked, block by block.

        Yields:
            Rows (k,), their EEG (k, repetitions, n_chans, n_times) float32, without repetitions that no picture uses,
            and which of these trials are used (k, repetitions) bool.

        Raises:
            DataError: A value of a used trial is NaN or infinite; names picture, repetition and channel.
        """
        rows = np.arange(len(self.eeg)) if rows is None else np.asarray(rows)
        every = self.used[rows]
        columns = np.flatnonzero(every.any(axis=0))
        step = max(1, BLOCK // self.eeg.shape[1])
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            block = self.read(part) if self.keep is None else self.read(part[:, None], columns)
            used = every[start : start + step][:, columns]
            # One pass for the usual case: a sum is finite only if every term is (float16 sums cannot overflow float32).
            if not np.isfinite(block.sum(dtype=np.float64)):
                self._report(part, columns, block, used)
            yield part, block, used

    def average(self, rows: np.ndarray | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Mean over the repetitions used, (n_rows, n_chans, n_times) float32, computed block by block.

        Args:
            rows: Pictures with a trial that is used, as positions on the first axis; default: all.
            out: Where to write it, if the caller has the memory already.

        Raises:
            DataError: As `blocks`.
        """
        count = len(self.eeg) if rows is None else len(rows)
        out = np.empty((count, *self.shape[2:]), dtype=np.float32) if out is None else out
        done = 0
        for _, block, used in self.blocks(rows):
            here = out[done : done + len(block)]
            if self.keep is None:
                np.mean(block, axis=1, out=here)
            else:
                np.mean(block, axis=1, out=here, where=used[:, :, None, None])
            done += len(block)
        return out

    def _report(self, rows: np.ndarray, columns: np.ndarray, block: np.ndarray, used: np.ndarray) -> None:
        bad = np.argwhere(~np.isfinite(block) & used[:, :, None, None])
        if not len(bad):
            return
        row, repetition, channel, _ = (int(i) for i in bad[0])
        index = int(self.image_index[rows[row]])
        name = self.images.records[index].image_id if self.images is not None else f"number {index}"
        kind = "NaN" if np.isnan(block[tuple(bad[0])]) else "an infinite value"
        raise DataError(
            f"The EEG in {self.path} holds {kind} at picture {name!r}, repetition {columns[repetition]}, channel "
            f"{self.ch_names[channel]!r} ({len(bad)} such values nearby), where only finite numbers may stand: make "
            f"the store again with {FIX}."
        )
