"""Noise of the simulated recordings: counter-based random numbers and a bank of periodic background EEG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SFREQ = 250.0
BASELINE = 50  # samples before onset (200 ms) whose mean is subtracted, as in THINGS-EEG2's preprocessing
PERIOD = 1000  # samples; four seconds, so that the background has power below 1 Hz


def _scramble(state: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele et al. 2014), on uint64 arrays."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def counter_uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Return uniform numbers in (0, 1) that depend on the integer ``keys`` alone (broadcast together).

    Every trial's randomness comes from here, so it does not depend on which other trials are made or in what order.
    """
    arrays = np.broadcast_arrays(*[np.asarray(key, dtype=np.int64) for key in keys])
    state = np.full(arrays[0].shape, 0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for array in arrays:
            state = _scramble(state + np.uint64(0x9E3779B97F4A7C15) + _scramble(array.astype(np.uint64)))
    return ((state >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52


def counter_normal(*keys: int | np.ndarray) -> np.ndarray:
    """Return standard normal numbers that depend on the integer ``keys`` alone."""
    from scipy.special import ndtri

    return np.asarray(ndtri(counter_uniform(*keys)))


@dataclass(frozen=True)
class NoiseParams:
    """Background EEG. Shares are of variance; ``total`` is what a single trial shows after baseline correction.

    Attributes:
        total: standard deviation in uV over channels and samples (THINGS-EEG2-like, shared/facts/pocket.md: 7.3).
        pink: share of 1/f activity from random cortical dipoles, hence coloured in space.
        alpha: share of alpha rhythm from parieto-occipital dipoles.
        sensor: share of white noise, independent for each electrode.
        exponent: power falls as 1 / f ** exponent (He 2014, doi:10.1016/j.tics.2014.04.003: about 1).
        alpha_width: spectral width of alpha in Hz.
        n_traces: periodic traces in a bank; a trial mixes two, each shifted and signed: 4e6 different windows each.
    """

    total: float = 7.3
    pink: float = 0.60
    alpha: float = 0.20
    sensor: float = 0.20
    exponent: float = 1.0
    alpha_width: float = 1.0
    n_traces: int = 512


def _shaped(rng: np.random.Generator, n_chans: int, amplitude: np.ndarray) -> np.ndarray:
    """Return periodic Gaussian traces ``(n_chans, PERIOD)`` with the given amplitude spectrum, unit variance."""
    from scipy.fft import irfft

    used = np.flatnonzero(amplitude > 1e-6 * amplitude.max())  # alpha occupies a few frequencies only
    spectrum = np.zeros((n_chans, len(amplitude)), np.complex64)
    # Each sample gets the variance sum(amplitude**2) * 4 / PERIOD**2 from real and imaginary parts.
    scale = PERIOD / 2 / np.sqrt(np.sum(amplitude**2))
    parts = rng.standard_normal((2, n_chans, len(used)), dtype=np.float32) * (amplitude[used] * scale).astype(
        np.float32
    )
    spectrum[:, used] = parts[0] + 1j * parts[1]
    return np.asarray(irfft(spectrum, n=PERIOD, axis=-1), dtype=np.float32)


def _square_root(leads: np.ndarray) -> np.ndarray:
    """Return ``(c, c)`` float32 whose square is the covariance of unit sources behind ``leads``, mean variance one."""
    covariance = leads @ leads.T
    values, vectors = np.linalg.eigh(covariance / np.mean(np.diag(covariance)))
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T, dtype=np.float32)


def corrected_variance(power: np.ndarray, n_times: int) -> float:
    """Return the mean variance of a trial after baseline correction, for a periodic process of unit variance.

    Args:
        power: squared amplitude at each frequency of ``rfftfreq(PERIOD)``, any scale.
        n_times: samples of the trial after onset.
    """
    lags = np.arange(BASELINE + n_times)
    steps = np.cos(2 * np.pi * np.outer(lags, np.arange(len(power))) / PERIOD)
    autocovariance = steps @ (power / power.sum())
    covariance = autocovariance[np.abs(lags[:, None] - lags)]
    correct = np.eye(len(lags))[BASELINE:]
    correct[:, :BASELINE] -= 1 / BASELINE
    return float(np.einsum("ij,jk,ik->i", correct, covariance, correct, optimize=True).mean())


class NoiseBank:
    """A bank of background EEG to draw one-second trials from; a trace is made when it is first used.

    Args:
        seed: integers that name the bank; two partitions get two banks and share nothing.
        pink_leads: leadfield of the 1/f dipoles ``(c, k)``.
        alpha_leads: leadfield of the alpha dipoles ``(c, k)``.
        alpha_hz: this subject's alpha frequency.
        params: see `NoiseParams`.
        n_times: samples of a trial.
    """

    def __init__(
        self,
        seed: list[int],
        pink_leads: np.ndarray,
        alpha_leads: np.ndarray,
        alpha_hz: float,
        params: NoiseParams,
        n_times: int,
    ) -> None:
        frequencies = np.fft.rfftfreq(PERIOD, 1 / SFREQ)
        self._pink = np.where(frequencies > 0, np.maximum(frequencies, 0.25) ** (-params.exponent / 2), 0.0)
        self._alpha = np.exp(-0.5 * ((frequencies - alpha_hz) / params.alpha_width) ** 2)
        white = np.ones(len(frequencies))
        parts = ((params.pink, self._pink), (params.alpha, self._alpha), (params.sensor, white))
        unscaled = sum(share * corrected_variance(amplitude**2, n_times) for share, amplitude in parts)
        scale = params.total / np.sqrt(unscaled)
        self._pink_mix = np.float32(scale * np.sqrt(params.pink)) * _square_root(pink_leads)
        self._alpha_mix = np.float32(scale * np.sqrt(params.alpha)) * _square_root(alpha_leads)
        self._sensor = np.float32(scale * np.sqrt(params.sensor))
        self._seed = list(seed)
        self.n_traces = params.n_traces
        self.window = BASELINE + n_times
        # Stored with the start repeated at the end, so every circular shift is one slice.
        self._traces = np.empty((params.n_traces, len(pink_leads), PERIOD + self.window), np.float32)
        self._made = np.zeros(params.n_traces, dtype=bool)

    def trace(self, number: int) -> np.ndarray:
        """Return one periodic trace ``(c, PERIOD + window)`` in uV, its start repeated at the end."""
        trace = self._traces[number]
        if not self._made[number]:
            rng = np.random.default_rng([*self._seed, number])
            n_chans = len(trace)
            # Alpha waxes and wanes from trace to trace: log-normal with unit mean square.
            strength = np.float32(np.exp(0.5 * rng.standard_normal() - 0.25))
            trace[:, :PERIOD] = self._pink_mix @ _shaped(rng, n_chans, self._pink)
            trace[:, :PERIOD] += strength * (self._alpha_mix @ _shaped(rng, n_chans, self._alpha))
            trace[:, :PERIOD] += self._sensor * rng.standard_normal((n_chans, PERIOD), dtype=np.float32)
            trace[:, PERIOD:] = trace[:, : self.window]
            self._made[number] = True
        return trace

    def add(self, out: np.ndarray, uniforms: np.ndarray) -> None:
        """Add one trial's noise to ``out`` ``(c, n_times)`` in place; ``uniforms`` are six numbers in (0, 1)."""
        for which, where, sign in uniforms.reshape(2, 3):
            shift = int(where * PERIOD)
            window = self.trace(int(which * self.n_traces))[:, shift : shift + self.window]
            piece = window[:, BASELINE:] - window[:, :BASELINE].mean(axis=1, keepdims=True)
            # Two independent windows at 1/sqrt(2) each keep the total variance.
            piece *= np.float32(np.sqrt(0.5) if sign < 0.5 else -np.sqrt(0.5))
            out += piece
