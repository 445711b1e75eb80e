"""What a block of trials looks like at a glance: mean response, faults of single channels, and the picture of both."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eegrecon.artifacts import atomic_write

UNIT_NAMES = {"uV": "µV", "mvnn": "unitless (MVNN)", "zscore": "z-score", "fT": "fT"}
N_MAPS = 6  # topographies under the curves
HEAD_RADIUS = 0.095  # metres, of the head that MNE draws


@dataclass
class TrialScan:
    """Runs over trials block by block and keeps what `inspect` says and draws; memory does not grow with the file.

    Attributes:
        ch_names: Channels in order.
        sfreq: Samples per second.
        tmin: Time of the first sample, seconds from picture onset.
        unit: "uV", "mvnn", "zscore" or "fT".
        n_trials: Trials seen.
        not_finite: Trials that hold NaN or infinite values.
    """

    ch_names: Sequence[str]
    sfreq: float
    tmin: float
    unit: str
    n_trials: int = 0
    not_finite: int = 0
    _sum: Any = None
    _square: Any = None
    _moves: Any = field(default=None)

    def add(self, trials: np.ndarray) -> None:
        """Look at more trials, (k, n_chans, n_times), any float type, in `unit`."""
        trials = np.asarray(trials, dtype=np.float64)
        good = np.isfinite(trials).all(axis=(1, 2))
        self.n_trials += len(trials)
        self.not_finite += int((~good).sum())
        trials = trials[good]
        if self._sum is None:
            self._sum, self._square = (np.zeros(trials.shape[1:]) for _ in range(2))
            self._moves = np.zeros(trials.shape[1], dtype=bool)
        self._sum += trials.sum(axis=0)
        self._square += (trials**2).sum(axis=0)
        if len(trials):
            self._moves |= np.ptp(trials, axis=(0, 2)) > 0

    @property
    def mean(self) -> np.ndarray:
        """Mean over the finite trials, (n_chans, n_times), in `unit`; zeros before any."""
        return self._sum / max(1, self.n_trials - self.not_finite)

    @property
    def rms(self) -> np.ndarray:
        """Root mean square of single trials per channel, (n_chans,), in `unit`."""
        return np.sqrt(self._square.mean(axis=1) / max(1, self.n_trials - self.not_finite))

    @property
    def constant(self) -> list[str]:
        """Channels that hold one and the same value in every trial and sample."""
        return [name for name, moves in zip(self.ch_names, self._moves, strict=True) if not moves]

    def problems(self) -> list[str]:
        """What is wrong with the numbers themselves, one sentence each."""
        found = []
        if self.not_finite:
            found.append(
                f"{self.not_finite} of {self.n_trials} trials hold NaN or infinite values, where only finite numbers "
                "may stand: make the file again from its source, or leave these trials out."
            )
        if self.constant and self.n_trials > self.not_finite:
            found.append(
                f"the channels {', '.join(self.constant)} never change, expected a signal on every channel: check "
                "the recording, or leave them out with data.channels."
            )
        return found


def evoked_figure(scan: TrialScan, title: str) -> Any:
    """Draw the mean response of all channels over time, and its topography at evenly spread peaks.

    Topographies need channel positions: names of the 10-05 system and of CTF's MEG sensors have them, others are drawn
    as curves only, and the figure says so.

    Args:
        scan: What was seen.
        title: The figure's title.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    mean, times = scan.mean, scan.tmin + np.arange(scan.mean.shape[1]) / scan.sfreq
    spread = mean.std(axis=0)  # global field power
    places = _places(scan.ch_names, scan.sfreq)
    figure = Figure(figsize=(10, 6 if places is not None else 4.2), layout="constrained")
    if places is None:
        curves, maps = figure.subplots(), []
    else:
        grid = figure.add_gridspec(2, N_MAPS, height_ratios=(2, 1))
        curves = figure.add_subplot(grid[0, :])
        maps = [figure.add_subplot(grid[1, i]) for i in range(N_MAPS)]
    curves.plot(times, mean.T, color="0.65", linewidth=0.5)
    curves.plot(times, spread, color="#b03060", linewidth=1.6, label="spread over channels (global field power)")
    curves.axvline(0.0, color="0.3", linewidth=0.8, linestyle=":")
    curves.set(xlabel="seconds from picture onset", ylabel=f"mean response, {UNIT_NAMES.get(scan.unit, scan.unit)}")
    curves.legend(loc="upper right", frameon=False)
    curves.spines[["top", "right"]].set_visible(False)
    note = "" if places is not None else "; no positions known for these channel names, so no topography"
    title = "\n".join(textwrap.wrap(title, 90))
    figure.suptitle(f"{title}\nmean of {scan.n_trials - scan.not_finite} trials, {len(scan.ch_names)} channels{note}")
    if places is not None:
        from mne.viz import plot_topomap

        limit = float(np.abs(mean).max()) or 1.0
        for axis, peak in zip(maps, _peaks(spread, N_MAPS), strict=True):
            plot_topomap(mean[:, peak], places, axes=axis, show=False, vlim=(-limit, limit), contours=4, sensors="k,")
            axis.set_title(f"{1000 * times[peak]:.0f} ms", fontsize=10)
            curves.axvline(times[peak], color="0.85", linewidth=0.8, zorder=0)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _peaks(spread: np.ndarray, count: int) -> list[int]:
    """The largest sample of each of `count` equal stretches of time: late activity is shown beside the early peak."""
    return [int(part[np.argmax(spread[part])]) for part in np.array_split(np.arange(len(spread)), count) if len(part)]


def _places(ch_names: Sequence[str], sfreq: float) -> Any:
    """Where channels are: MNE info with 10-05 positions, flat CTF positions (n, 2), or None if a name has none."""
    import mne

    if len(set(ch_names)) != len(ch_names):
        return None
    montage = mne.channels.make_standard_montage("colin27_1005")
    if not set(ch_names) - set(montage.ch_names):
        return mne.create_info(list(ch_names), sfreq, "eeg").set_montage(montage)
    layout = mne.channels.read_layout("CTF-275")  # names such as MLC11-2622: the number is the system's
    flat = {name.split("-")[0]: place[:2] for name, place in zip(layout.names, layout.pos, strict=True)}
    names = [name.split("-")[0] for name in ch_names]
    if set(names) - set(flat) or len(set(names)) != len(names):
        return None
    found = np.array([flat[name] for name in names])
    found -= (found.min(axis=0) + found.max(axis=0)) / 2
    return found / np.linalg.norm(found, axis=1).max() * HEAD_RADIUS
