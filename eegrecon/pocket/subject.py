"""A simulated subject that has seen all pictures: noise-free averages, single trials, ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eegrecon.pocket.brain_params import N_TIMES, BrainParams
from eegrecon.pocket.forward import CH_NAMES, leadfield
from eegrecon.pocket.noise import SFREQ, NoiseBank, counter_normal, counter_uniform
from eegrecon.pocket.sources import BRAIN_CENTRE, inside


def jitter_distribution(spread: float) -> np.ndarray:
    """Return the probabilities of whole-sample shifts -k … k, a Gaussian of ``spread`` s cut at three spreads."""
    from scipy.stats import norm

    samples = spread * SFREQ
    reach = int(np.ceil(3 * samples))
    if reach == 0:
        return np.ones(1)
    edges = np.arange(-reach, reach) + 0.5
    return np.diff(np.concatenate([[0.0], norm.cdf(edges / samples), [1.0]]))


@dataclass(frozen=True)
class Pathway:
    """Sources that share one latency jitter: ``codes (n_images, k)`` times ``leads (63, k)`` times ``courses (k, t)``.

    ``courses`` has `pad` extra samples on either side, so that a shifted trial is one slice.
    """

    codes: np.ndarray
    leads: np.ndarray
    courses: np.ndarray
    evoked: np.ndarray
    jitter: np.ndarray

    @property
    def pad(self) -> int:
        """Extra samples on either side."""
        return len(self.jitter) // 2

    def response(self, image: int) -> np.ndarray:
        """Response to one picture without jitter, ``(63, N_TIMES + 2 pad)`` float32 uV, evoked part included."""
        # One picture at a time: the product's shape, hence its rounding, never depends on how trials are grouped.
        return np.asarray(self.leads @ (self.codes[image][:, None] * self.courses) + self.evoked)

    def expected(self, signal: np.ndarray) -> np.ndarray:
        """Average ``(k, N_TIMES + 2 pad)`` over the latency jitter, ``(k, N_TIMES)``."""
        windows = np.lib.stride_tricks.sliding_window_view(signal, N_TIMES, axis=-1)  # window w is shift pad - w
        return np.asarray(np.einsum("kwt,w->kt", windows, self.jitter[::-1].astype(np.float32)), dtype=np.float32)


class SimulatedSubject:
    """One subject's brain with all pictures shown to it. Made by `simulate_subject`.

    Every trial's randomness derives from (subject, picture, repetition) alone, so trials do not depend on the order or
    the blocks they are asked for in. Training and test pictures draw their noise from two banks that share nothing.
    """

    def __init__(
        self,
        subject: int,
        params: BrainParams,
        early: Pathway,
        late: Pathway,
        train_mask: np.ndarray,
        record: dict[str, Any],
    ) -> None:
        self.subject = subject
        self.params = params
        self.pathways = (early, late)
        self.train_mask = np.asarray(train_mask, dtype=bool)
        self._record = record
        self._banks: dict[bool, NoiseBank] = {}

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.train_mask)

    def clean(self, image_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return what infinitely many repetitions would average to.

        Args:
            image_indices: ``(m,)`` positions in the picture array.

        Returns:
            ``(m, 63, 250)`` float32 uV.
        """
        out = np.zeros((len(image_indices), len(CH_NAMES), N_TIMES), np.float32)
        for row, image in enumerate(image_indices):
            for pathway in self.pathways:
                out[row] += pathway.expected(pathway.response(int(image)))
        return out

    def trials(
        self, image_indices: Sequence[int] | np.ndarray, repetitions: int, first_repetition: int = 0
    ) -> np.ndarray:
        """Return single trials.

        Args:
            image_indices: ``(m,)`` positions in the picture array.
            repetitions: how many trials of each picture.
            first_repetition: number of the first one; the same numbers give the same trials.

        Returns:
            ``(m, repetitions, 63, 250)`` float32 uV.
        """
        images = np.asarray(image_indices, dtype=np.int64)
        out = np.empty((len(images), repetitions, len(CH_NAMES), N_TIMES), np.float32)
        numbers = first_repetition + np.arange(repetitions)
        keys = (self.params.code_seed, self.subject, images[:, None, None], numbers[:, None])
        uniforms = counter_uniform(*keys, np.arange(8))
        spread = self.params.amplitude_jitter
        amplitude = np.exp(spread * counter_normal(*keys, np.arange(8, 10)) - spread**2 / 2).astype(np.float32)
        shifts = [np.searchsorted(np.cumsum(p.jitter)[:-1], uniforms[..., 6 + k]) for k, p in enumerate(self.pathways)]
        for row, image in enumerate(images):
            bank = self._bank(bool(self.train_mask[image]))
            early, late = (pathway.response(int(image)) for pathway in self.pathways)
            for rep in range(repetitions):
                trial = out[row, rep]
                # Place k of the jitter distribution is a shift by k - pad samples; later means reading further left.
                starts = [2 * p.pad - int(s[row, rep]) for p, s in zip(self.pathways, shifts, strict=True)]
                np.multiply(early[:, starts[0] : starts[0] + N_TIMES], amplitude[row, rep, 0], out=trial)
                trial += late[:, starts[1] : starts[1] + N_TIMES] * amplitude[row, rep, 1]
                bank.add(trial, uniforms[row, rep, :6])
        return out

    def truth(self) -> dict[str, Any]:
        """Return all that decided this subject: plain values and, under "arrays", what `pocket.truth.Truth` reads.

        ``codes (n_images, k)``, ``topographies (k, 63)`` in uV and ``time_courses (k, 250)`` give the noise-free
        average of picture i exactly: ``evoked + einsum("k,kc,kt->ct", codes[i], topographies, time_courses)``.
        """
        early, late = self.pathways
        arrays = {
            "codes": np.concatenate([p.codes for p in self.pathways], axis=1),
            "topographies": np.concatenate([p.leads for p in self.pathways], axis=1).T,
            "time_courses": np.concatenate([p.expected(p.courses) for p in self.pathways]),
            "evoked": early.expected(early.evoked) + late.expected(late.evoked),
        }
        return {"subject": self.subject, "params": asdict(self.params), **self._record, "arrays": arrays}

    def _bank(self, train: bool) -> NoiseBank:
        if train not in self._banks:
            self._banks[train] = make_bank(self.subject, train, self.params)
        return self._banks[train]


def make_bank(subject: int, train: bool, params: BrainParams) -> NoiseBank:
    """Build a subject's background EEG for the training or the test pictures."""
    rng = np.random.default_rng([params.code_seed, subject, 4])  # the generators are one subject's, hence shared
    directions = rng.standard_normal((220, 3)) + np.array([0.0, 0.0, 0.4])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radii = rng.uniform(45, 78, (220, 1))
    positions = inside(BRAIN_CENTRE + radii * directions)
    pink = leadfield(positions, directions + rng.normal(0, 0.6, (220, 3)))
    places = np.array([18.0, -84.0, 18.0]) * np.array([[1, 1, 1], [-1, 1, 1]] * 4) + rng.normal(0, 8, (8, 3))
    alpha = leadfield(inside(places), np.array([0.0, -0.9, 0.45]) + rng.normal(0, 0.3, (8, 3)))
    alpha_hz = rng.uniform(8.8, 11.2)
    return NoiseBank([params.code_seed, subject, 5, int(train)], pink, alpha, alpha_hz, params.noise, N_TIMES)
