"""Stream a source into a trial store: block by block, every trial checked, resumed after a kill."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from eegrecon.data.images import ImageSet
from eegrecon.data.sources import SIDES, TrialSource
from eegrecon.data.trials import TrialStoreWriter
from eegrecon.errors import DataError

BLOCK_BYTES = 64_000_000  # of a block as float64; some five blocks are in memory at once
STORED = np.dtype(np.float16)
LARGEST = float(np.finfo(STORED).max)  # 65504
SMALLEST = 0.01  # largest value of a block of real data in any of the store's units; volts and teslas lie far below


def store_bytes(source: TrialSource) -> int:
    """Size of a source's trial store."""
    trials = sum(n * repetitions for n, repetitions in source.counts().values())
    return trials * len(source.ch_names) * source.n_times * STORED.itemsize


def convert(
    source: TrialSource,
    home: Path,
    *,
    set_name: str,
    images: ImageSet,
    claim: Mapping[str, Any],
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write a source's trials into the trial store `home`.

    Args:
        source: Where they come from.
        home: The store's folder.
        set_name: Name of the set.
        images: Its pictures.
        claim: What the rows depend on: rows that a killed run left under the same claim are kept.
        progress: Called with the number of trials just finished.

    Raises:
        DataError: A trial holds NaN or infinite values or values beyond float16, a channel is constant, the values are
            far too small, the disk is full, or what was written does not read back; nothing is left of the store.
    """
    counts = source.counts()
    try:
        with TrialStoreWriter(
            home,
            set=set_name,
            subject=source.subject,
            unit=source.unit,
            sfreq=source.sfreq,
            tmin=source.tmin,
            n_times=source.n_times,
            ch_names=source.ch_names,
            preprocessing=source.preprocessing,
            sources=source.sources,
            images=images,
            counts=counts,
            dtype=STORED.name,
            claim=claim,
        ) as writer:
            for side in SIDES:
                index, session = source.image_index(side), source.session(side)
                done = writer.rows(side)
                writer.keep(side, index[:done], session[:done])
                progress(done * counts[side][1])
                checks = _Checks(source, side, images, index)
                if done:  # which channels vary is not known of rows that a killed run wrote: look at the first again
                    checks.block(0, source.read(side, 0, min(done, _step(source, side))))
                for start, block in _blocks(source, side, done):
                    checks.block(start, block)
                    stop = start + len(block)
                    writer.append(side, block, index[start:stop], session[start:stop])
                    progress(len(block) * counts[side][1])
                checks.finish()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"The disk under {home} became full while the store was written: make room and run the command again."
        ) from error


def _blocks(source: TrialSource, side: str, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """Rows from `start` on, block by block; the next block is read while the last one is worked on."""
    n, step = source.counts()[side][0], _step(source, side)
    starts = range(start, n, step)
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = [reader.submit(source.read, side, at, min(at + step, n)) for at in starts[:1]]
        for number, at in enumerate(starts):
            block = ahead.pop().result()
            ahead = [reader.submit(source.read, side, at, min(at + step, n)) for at in starts[number + 1 : number + 2]]
            yield at, block


def _step(source: TrialSource, side: str) -> int:
    """Rows of a block."""
    return max(1, BLOCK_BYTES // (prod((source.counts()[side][1], len(source.ch_names), source.n_times)) * 8))


class _Checks:
    """What every trial of one partition must fulfil."""

    def __init__(self, source: TrialSource, side: str, images: ImageSet, index: np.ndarray) -> None:
        self.source, self.side, self.images, self.index = source, side, images, index
        self.files = ", ".join(source.sources) or f"subject {source.subject}"
        self.varies = np.zeros(len(source.ch_names), dtype=bool)
        self.largest = 0.0

    def block(self, start: int, block: np.ndarray) -> None:
        """Check rows from `start` on: (k, n_repetitions, n_chans, n_times) float32.

        Raises:
            DataError: A value cannot be stored; names picture, repetition and channel.
        """
        low, high = float(block.min()), float(block.max())
        if not (np.isfinite(low) and np.isfinite(high)) or max(-low, high) > LARGEST:
            self._refuse(start, block)
        self.largest = max(self.largest, -low, high)
        if self.largest < SMALLEST:
            raise DataError(
                f"The {self.side} trials of {self._who} are at most {self.largest:.1e} in size, which float16 cannot "
                f"hold in {self.source.unit}: they look like volts or teslas, so scale the file (1e6 for uV)."
            )
        still = np.flatnonzero(~self.varies)
        if len(still):
            part = block[:, :, still]
            self.varies[still] = (part != part[..., :1]).any(axis=(0, 1, 3))

    def finish(self) -> None:
        """Check what only all rows together show.

        Raises:
            DataError: A channel is constant within every trial.
        """
        still = [self.source.ch_names[i] for i in np.flatnonzero(~self.varies)]
        if still:
            raise DataError(
                f"The channel(s) {', '.join(still)} of {self._who} are constant in every {self.side} trial, so nothing "
                "was recorded there: get the file again, or repair the channels before."
            )

    def _refuse(self, start: int, block: np.ndarray) -> None:
        bad = ~(np.abs(block) <= LARGEST)
        row, repetition, channel, sample = (int(i) for i in np.argwhere(bad)[0])
        value = float(block[row, repetition, channel, sample])
        kind = "NaN" if np.isnan(value) else "an infinite value" if np.isinf(value) else f"the value {value:.6g}"
        why = "only finite numbers may stand" if not np.isfinite(value) else f"float16 ends at {LARGEST:.0f}"
        name = self.images.records[int(self.index[start + row])].image_id
        time = self.source.tmin + sample / self.source.sfreq
        raise DataError(
            f"The trials of {self._who} hold {kind} at picture {name!r}, repetition {repetition}, channel "
            f"{self.source.ch_names[channel]!r}, {time:.3f} s ({int(bad.sum())} such values nearby), where {why}: get "
            "the file again, or repair the trial before."
        )

    @property
    def _who(self) -> str:
        return f"subject {self.source.subject} ({self.files})"
