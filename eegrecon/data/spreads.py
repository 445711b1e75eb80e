"""How much EEG varies beside the trials an encoder was trained on: other units, loose and dead electrodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# How much the EEG's spread may differ from the training trials' before a wrong unit is suspected (V for µV: 1e6).
ODD_SPREAD = 100.0
# The same for a single channel: mV for µV is 1000, a loose electrode is less; beyond it nothing can be read from it.
ABSURD_SPREAD = 300.0
LOOKED_AT = 64  # trials whose spread is measured
MOST_NAMED = 8  # channels in a message


def channel_spreads(eeg: np.ndarray, channel_std: np.ndarray) -> np.ndarray:
    """How many times as much each channel varies as it did in the training trials, (n_chans,).

    0 says that it is constant within every trial; nan, that it cannot be said.

    Args:
        eeg: (n, n_chans, n_times); the first 64 trials are looked at.
        channel_std: (n_chans,) standard deviation of the training trials.
    """
    looked_at = np.asarray(eeg[:LOOKED_AT], dtype=np.float64)
    moves = (looked_at != looked_at[:, :, :1]).any(axis=(0, 2))  # the deviation of a constant may round to above 0
    with np.errstate(all="ignore"):
        return np.where(moves, looked_at.std(axis=(0, 2)) / channel_std, 0.0)


def spread(eeg: np.ndarray, channel_std: np.ndarray) -> float:
    """The median of `channel_spreads`."""
    return float(np.median(channel_spreads(eeg, channel_std)))


def is_odd(ratio: float) -> bool:
    """Whether a spread is more likely a wrong unit than a lively subject."""
    return bool(np.isfinite(ratio)) and not 1 / ODD_SPREAD < ratio < ODD_SPREAD


def odd_channels(eeg: np.ndarray, channel_std: np.ndarray, ch_names: Sequence[str]) -> tuple[str, str, str]:
    """Channels that the median of all hides, each kind named with what is found, "" if there are none.

    Args:
        eeg: As `channel_spreads`.
        channel_std: Likewise.
        ch_names: Their names.

    Returns:
        Those that are constant within every trial, those whose spread no electrode has, and those that are odd.
    """
    ratios = channel_spreads(eeg, channel_std)
    size = np.abs(np.log(np.maximum(ratios, 1e-300)))  # either way; nan stays nan, and is none of the three
    dead, absurd, odd = ratios == 0, size >= np.log(ABSURD_SPREAD), size >= np.log(ODD_SPREAD)

    def named(chosen: np.ndarray, numbers: bool) -> str:
        words = [f"{ch_names[i]} {ratios[i]:.2g}" if numbers else ch_names[i] for i in np.flatnonzero(chosen).tolist()]
        shown = words if len(words) <= MOST_NAMED else [*words[:MOST_NAMED], f"and {len(words) - MOST_NAMED} more"]
        return ", ".join(shown)

    return named(dead, False), named(absurd & ~dead, True), named(odd & ~absurd, True)
