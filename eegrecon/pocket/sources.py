"""Where a simulated subject's picture-driven dipoles lie, how they point and when they answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eegrecon.pocket.forward import AREAS, Area, leadfield, mirror, unit

# MNE's sphere fitted to the 1005 template, in fsaverage/MNI mm; dipoles stay a few mm inside its brain radius of 86.
BRAIN_CENTRE = np.array([1.0, -16.5, 3.5])
SAFE_RADIUS = 80.0
V1_LENGTH = 32.0  # mm of calcarine cortex from the pole to the picture's corners
ECCENTRICITY_0 = 0.25  # cortical magnification 1 / (r + this), r in half picture widths (Horton & Hoyt 1991: 0.75 deg)


@dataclass(frozen=True)
class Sources:
    """The dipoles of one subject (``n`` of them) and what they show at the electrodes.

    Attributes:
        area: name of each dipole's area, ``(n,)`` str.
        hemisphere: -1 left, +1 right, ``(n,)``.
        positions: mm, fsaverage/MNI, ``(n, 3)``.
        normals: unit vectors ``(n, 3)``.
        latency: time of the first peak in s, ``(n,)``.
        width: its standard deviation in s, ``(n,)``.
        leads: uV per nAm ``(63, n)``.
    """

    area: np.ndarray
    hemisphere: np.ndarray
    positions: np.ndarray
    normals: np.ndarray
    latency: np.ndarray
    width: np.ndarray
    leads: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """How much subjects and dipoles differ.

    Attributes:
        area_spread: spread in mm of an area's dipoles around its centre, the same in every subject.
        area_tilt: the same for directions, relative to the unit normal (the cortex is folded).
        area_lag: spread of an area's dipoles' latencies, relative to the area's width (late codes unfold in time).
        retinotopic_lag: the same for V1, V2 and V4.
        subject_shift: further shift in mm of each dipole in this subject.
        subject_tilt: further tilt in this subject (0.25 is about 14 degrees an axis).
        latency_scale: spread of a factor on all of a subject's latencies (0.04: 4 %).
        latency_shift: spread in s of a further shift of each area in this subject.
    """

    area_spread: float = 5.0
    area_tilt: float = 0.7
    area_lag: float = 1.2
    retinotopic_lag: float = 0.33
    subject_shift: float = 3.0
    subject_tilt: float = 0.25
    latency_scale: float = 0.04
    latency_shift: float = 0.005


def visual_field(grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (right positive) and y (up positive) of the cells of a ``grid`` × ``grid`` picture, each in (-1, 1)."""
    centres = (np.arange(grid) + 0.5) / grid * 2 - 1
    y, x = np.meshgrid(-centres, centres, indexing="ij")
    return x.ravel(), y.ravel()


def magnification(grid: int) -> np.ndarray:
    """Return how much cortex each cell gets, ``(grid * grid,)``, mean one: the fovea most."""
    x, y = visual_field(grid)
    amount = 1 / (np.hypot(x, y) + ECCENTRICITY_0)
    return np.asarray(amount / amount.mean())


def retinotopic_dipoles(area: Area, grid: int, length: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay one dipole per picture cell along a right-hemisphere area, then mirror the cells of the right visual field.

    The left half of the picture goes to the right hemisphere, the fovea to the pole, the periphery forward, the upper
    field to the lower bank whose surface faces up (the cruciform arrangement that reverses C1; Jeffreys & Axford 1972).

    Returns:
        hemisphere ``(n,)``, positions in mm ``(n, 3)``, unit normals ``(n, 3)``.
    """
    x, y = visual_field(grid)
    eccentricity = np.hypot(x, y)
    forward = length * np.log1p(eccentricity / ECCENTRICITY_0) / np.log1p(np.sqrt(2) / ECCENTRICITY_0)
    elevation = y / eccentricity
    positions = np.array(area.centre) + np.stack([0.15 * forward, forward, -6.0 * elevation], axis=1)
    bank = 0.5 * eccentricity / np.sqrt(2)  # the pole points backwards, the banks more and more up or down
    normals = unit(unit(np.array([area.normal])) + np.stack([0 * x, 0 * x, bank * elevation], axis=1))
    hemisphere = np.where(x < 0, 1, -1)
    return hemisphere, mirror(positions, hemisphere), mirror(normals, hemisphere)


def scattered_dipoles(
    area: Area, per_hemisphere: int, anatomy: Anatomy, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scatter ``per_hemisphere`` dipoles around an area in each hemisphere (right ones first); returns as above."""
    count = 2 * per_hemisphere
    positions = np.array(area.centre) + anatomy.area_spread * rng.standard_normal((count, 3))
    normals = unit(unit(np.array([area.normal])) + anatomy.area_tilt * rng.standard_normal((count, 3)))
    hemisphere = np.repeat([1, -1], per_hemisphere)
    return hemisphere, mirror(positions, hemisphere), mirror(normals, hemisphere)


def inside(positions: np.ndarray) -> np.ndarray:
    """Pull positions in mm ``(n, 3)`` that lie too far out back to `SAFE_RADIUS` around the centre of the sphere."""
    offset = positions - BRAIN_CENTRE
    distance = np.linalg.norm(offset, axis=1, keepdims=True)
    return np.asarray(BRAIN_CENTRE + offset * np.minimum(1.0, SAFE_RADIUS / distance))


def build_sources(
    grids: dict[str, int],
    counts: dict[str, int],
    n_nuisance: int,
    anatomy: Anatomy,
    shared_seed: int,
    subject_seed: int,
) -> Sources:
    """Place all picture-driven dipoles of one subject.

    Args:
        grids: cells a side of each retinotopic area.
        counts: dipoles per hemisphere of each other area.
        n_nuisance: dipoles outside the visual areas that answer to what no target carries.
        anatomy: spreads.
        shared_seed: decides what all subjects have in common.
        subject_seed: decides this subject.

    Returns:
        Retinotopic areas first, then the others, then "nuisance".
    """
    shared, own = np.random.default_rng([shared_seed, 2]), np.random.default_rng([subject_seed, 3])
    names: list[str] = []
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    latency: list[np.ndarray] = []
    width: list[np.ndarray] = []
    speed = 1 + anatomy.latency_scale * own.standard_normal()
    for name in [*grids, *counts]:
        area = AREAS[name]
        if name in grids:
            parts.append(retinotopic_dipoles(area, grids[name], V1_LENGTH if name == "V1" else V1_LENGTH / 2))
        else:
            parts.append(scattered_dipoles(area, counts[name], anatomy, shared))
        n = len(parts[-1][0])
        names += [name] * n
        lag = anatomy.retinotopic_lag if name in grids else anatomy.area_lag
        own_latency = area.latency + lag * area.width * shared.standard_normal(n)
        latency.append(speed * own_latency + anatomy.latency_shift * own.standard_normal())
        width.append(np.full(n, area.width))
    if n_nuisance:
        # Anywhere in the back two thirds of the head, later and longer than the visual areas.
        direction = unit(own.standard_normal((n_nuisance, 3)) + np.array([0.0, -0.8, 0.3]))
        normals = unit(direction + own.normal(0, 0.4, (n_nuisance, 3)))
        parts.append((np.sign(direction[:, 0]), BRAIN_CENTRE + 68.0 * direction, normals))
        names += ["nuisance"] * n_nuisance
        latency.append(own.uniform(0.12, 0.5, n_nuisance))
        width.append(own.uniform(0.025, 0.07, n_nuisance))
    hemisphere, positions, normals = (np.concatenate(column) for column in zip(*parts, strict=True))
    positions = inside(positions + anatomy.subject_shift * own.standard_normal(positions.shape))
    normals = unit(normals + anatomy.subject_tilt * own.standard_normal(normals.shape))
    return Sources(
        np.array(names),
        hemisphere,
        positions,
        normals,
        np.concatenate(latency),
        np.concatenate(width),
        leadfield(positions, normals),
    )


def time_course(times: np.ndarray, latency: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return each source's response over time: a peak, then a slower, weaker opposite wave.

    Args:
        times: seconds ``(t,)``.
        latency: peak times ``(n,)`` in s.
        width: standard deviations ``(n,)`` in s.

    Returns:
        ``(n, t)`` float32, peak near one.
    """
    since = times[None, :] - latency[:, None]
    spread = width[:, None]
    peak = np.exp(-0.5 * (since / spread) ** 2)
    rebound = np.exp(-0.5 * ((since - 3.5 * spread) / (2 * spread)) ** 2)
    return np.asarray(peak - 0.4 * rebound, dtype=np.float32)
