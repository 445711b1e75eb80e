"""What a look-alike file holds: trials of the pocket brain or plain noise, at the rate and length of each layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from eegrecon.pocket.brain_params import N_TIMES
from eegrecon.pocket.forward import CH_NAMES
from eegrecon.pocket.noise import BASELINE, SFREQ

NOISE_UV = 7.3  # standard deviation of a single trial, as `NoiseParams.total`
BLOCK_TRIALS = 320  # trials in memory at once: 20 MB as float32
WHITENER_TRIALS = 400


class Signals(Protocol):
    """One subject who can be asked for trials; `SimulatedSubject` is one."""

    def trials(
        self, image_indices: Sequence[int] | np.ndarray, repetitions: int, first_repetition: int = 0
    ) -> np.ndarray:
        """Return ``(m, repetitions, 63, 250)`` float32 uV, 0-0.996 s; the same numbers give the same trials."""
        ...


class NoiseSignals:
    """White noise of a real trial's size: for tests and for speed. Every trial depends on its numbers alone."""

    def __init__(self, subject: int, seed: int = 0) -> None:
        self._key = [seed, subject]

    def trials(
        self, image_indices: Sequence[int] | np.ndarray, repetitions: int, first_repetition: int = 0
    ) -> np.ndarray:
        """Return ``(m, repetitions, 63, 250)`` float32 uV."""
        out = np.empty((len(image_indices), repetitions, len(CH_NAMES), N_TIMES), np.float32)
        for row, image in enumerate(image_indices):
            for rep in range(repetitions):
                rng = np.random.default_rng([*self._key, int(image), first_repetition + rep])
                rng.standard_normal(dtype=np.float32, out=out[row, rep])
        out *= np.float32(NOISE_UV)
        return out


def blocks(
    signals: Signals, images: Sequence[int] | np.ndarray, repetitions: int, trials: int = BLOCK_TRIALS
) -> Iterator[np.ndarray]:
    """Yield ``(k, repetitions, 63, 250)`` float32 uV, all images in order, about ``trials`` trials at a time."""
    step = max(1, trials // repetitions)
    for start in range(0, len(images), step):
        yield signals.trials(images[start : start + step], repetitions)


def whitener(signals: Signals, train_images: Sequence[int] | np.ndarray, repetitions: int) -> np.ndarray:
    """Return ``(63, 63)`` that makes trials unitless, as the published files are after MVNN (atm.md 1.3).

    The mean over training trials of the channel covariance over time, to the power -1/2. Unlike the published recipe:
    one matrix for all sessions, from the first 400 trials, without shrinkage (a covariance of 100,000 samples needs
    none).
    """
    few = train_images[: max(1, WHITENER_TRIALS // repetitions)]
    trials = signals.trials(few, repetitions).reshape(-1, len(CH_NAMES), N_TIMES).astype(np.float64)
    centred = trials - trials.mean(axis=-1, keepdims=True)
    covariance = np.einsum("nct,ndt->cd", centred, centred) / (len(trials) * (N_TIMES - 1))
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T)


def epochs(trials: np.ndarray, after: int = 0) -> np.ndarray:
    """Put activity before (and after) the trials, which begin at picture onset.

    Before: the trial's own last 200 ms backwards, its mean removed, so that subtracting the baseline's mean leaves the
    trial as it was, and a Fourier resampling finds no step at the ends. After: its last samples backwards.

    Args:
        trials: ``(…, 63, 250)``, 0-0.996 s.
        after: extra samples at the end.

    Returns:
        ``(…, 63, 50 + 250 + after)`` at 250 Hz, from -0.2 s on.
    """
    back = trials[..., ::-1]
    before = back[..., :BASELINE] - back[..., :BASELINE].mean(axis=-1, keepdims=True)
    return np.concatenate([before, trials, back[..., :after]], axis=-1)


def resample(epoch: np.ndarray, sfreq: float) -> np.ndarray:
    """Bring ``(…, n)`` at 250 Hz to ``sfreq`` by Fourier interpolation; rates above 250 Hz keep every old sample."""
    from scipy.signal import resample as fourier

    n = epoch.shape[-1]
    return np.asarray(fourier(epoch, round(n * sfreq / SFREQ), axis=-1))
