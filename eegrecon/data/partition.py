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
    """

    eeg: np.ndarray
    image_index: np.ndarray
    session: np.ndarray
    channels: list[int]
    window: slice
    path: Path
    ch_names: list[str]
    images: ImageSet | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n_images, n_repetitions, n_chans, n_times) after the choice of channels and window."""
        return (*self.eeg.shape[:2], len(self.channels), self.window.stop - self.window.start)

    def read(self, rows: np.ndarray, repetitions: np.ndarray | None = None) -> np.ndarray:
        """Single trials as float32: (b, n_chans, n_times), or (b, n_repetitions, n_chans, n_times) without repetitions.

        Not checked for NaN: see `blocks`.
        """
        chosen = self.eeg[rows] if repetitions is None else self.eeg[rows, repetitions]
        chosen = chosen[..., self.window]
        if self.channels != list(range(self.eeg.shape[2])):
            chosen = chosen[..., self.channels, :]
        return np.asarray(chosen, dtype=np.float32)

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All trials of these rows (default: all), checked, block by block.

        Yields:
            Rows (k,) and their EEG (k, n_repetitions, n_chans, n_times) float32.

        Raises:
            DataError: A value is NaN or infinite; names picture, repetition and channel.
        """
        rows = np.arange(len(self.eeg)) if rows is None else np.asarray(rows)
        step = max(1, BLOCK // self.eeg.shape[1])
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            block = self.read(part)
            # One pass for the usual case: a sum is finite only if every term is (float16 sums cannot overflow float32).
            if not np.isfinite(block.sum(dtype=np.float64)):
                self._report(part, block)
            yield part, block

    def average(self, rows: np.ndarray | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Mean over repetitions, (n_rows, n_chans, n_times) float32, computed block by block.

        Args:
            rows: Pictures, as positions on the first axis; default: all.
            out: Where to write it, if the caller has the memory already.

        Raises:
            DataError: As `blocks`.
        """
        count = len(self.eeg) if rows is None else len(rows)
        out = np.empty((count, *self.shape[2:]), dtype=np.float32) if out is None else out
        done = 0
        for _, block in self.blocks(rows):
            np.mean(block, axis=1, out=out[done : done + len(block)])
            done += len(block)
        return out

    def _report(self, rows: np.ndarray, block: np.ndarray) -> None:
        bad = np.argwhere(~np.isfinite(block))
        if not len(bad):
            return
        row, repetition, channel, _ = (int(i) for i in bad[0])
        index = int(self.image_index[rows[row]])
        name = self.images.records[index].image_id if self.images is not None else f"number {index}"
        kind = "NaN" if np.isnan(block[tuple(bad[0])]) else "an infinite value"
        raise DataError(
            f"The EEG in {self.path} holds {kind} at picture {name!r}, repetition {repetition}, channel "
            f"{self.ch_names[channel]!r} ({len(bad)} such values nearby), where only finite numbers may stand: make "
            f"the store again with {FIX}."
        )
