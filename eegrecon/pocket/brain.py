"""A simulated subject: pictures in, EEG at the 63 THINGS-EEG2 electrodes out.

Dipoles in V1, V2 and V4 follow a retinotopic low-level code near 100 ms, dipoles in LOC, FFA, PPA and ITG a nonlinear
mixture of another network's features at 150-300 ms; nuisance sources follow what no decoding target carries. All of it
is in uV, 250 Hz, 0-1 s from picture onset. The gain is chosen so that decoding accuracy resembles the field's:
agreement with real accuracy is therefore no evidence of anything.
"""

from __future__ import annotations

import numpy as np

from eegrecon.pocket.brain_params import N_TIMES, BrainParams
from eegrecon.pocket.features import LOW_LEVEL, local_code, retinotopic_features, shape_code, standardise
from eegrecon.pocket.forward import AREAS, CH_NAMES, EARLY_AREAS, LATE_AREAS, leadfield
from eegrecon.pocket.noise import SFREQ, counter_normal
from eegrecon.pocket.sources import Sources, build_sources, magnification, time_course
from eegrecon.pocket.subject import Pathway, SimulatedSubject, jitter_distribution

__all__ = ["AREAS", "CH_NAMES", "N_TIMES", "SFREQ", "BrainParams", "SimulatedSubject", "simulate_subject"]

# The response that every picture evokes: source, peak (s), spread (s), relative strength. P1, N1, P2 and a slow
# parietal positivity, the usual sequence after a picture's onset (Luck 2014, An Introduction to the ERP Technique).
EVOKED = (
    ("V1", 0.100, 0.016, 0.8),
    ("V4", 0.108, 0.018, 0.6),
    ("LOC", 0.168, 0.020, -1.0),
    ("FFA", 0.172, 0.020, -0.5),
    ("V2", 0.230, 0.030, 0.8),
    ("parietal", 0.400, 0.090, 0.8),
)
PARIETAL = ((25.0, -60.0, 45.0), (0.2, -0.5, 0.8))  # superior parietal, right hemisphere, mm and direction


def early_codes(
    pictures: np.ndarray, train_mask: np.ndarray, params: BrainParams, own: np.random.Generator
) -> dict[str, list[np.ndarray]]:
    """Return for each retinotopic area a list of ``(n_images, cells)`` codes, one for each kind of unit.

    V1 cells answer to the five low-level features themselves, V2 and V4 cells to three nonlinear mixtures of them; the
    weights of the kinds are a subject's own. Cells count as much as the cortex they have.
    """
    codes: dict[str, list[np.ndarray]] = {}
    for area, grid in params.grids.items():
        features = retinotopic_features(pictures, grid)
        flat = standardise(features.reshape(len(features), -1), train_mask)
        features = flat.reshape(features.shape)
        if area != "V1":
            features = local_code(features, train_mask, 3, seed=params.code_seed + len(area) + ord(area[-1]))
        weights = np.exp(0.3 * own.standard_normal(features.shape[-1]))
        cortex = magnification(grid)
        codes[area] = [np.asarray(features[..., k] * weight * cortex) for k, weight in enumerate(weights)]
    return codes


def late_codes(
    features: np.ndarray, train_mask: np.ndarray, params: BrainParams, own: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return each later area's codes ``(n_images, dipoles)``: the shared shape codes in this subject's own mixture."""
    sizes = {area: 2 * count for area, count in params.counts.items()}
    shared = shape_code(
        features, train_mask, sum(sizes.values()), hidden=params.hidden, drive=params.drive, seed=params.code_seed
    )
    codes, start = {}, 0
    for area, size in sizes.items():
        mixing, _ = np.linalg.qr(np.eye(size) + params.mixing * own.standard_normal((size, size)) / np.sqrt(size) * 2)
        codes[area] = np.asarray(shared[:, start : start + size] @ mixing)
        start += size
    return codes


def signal_gram(leads: np.ndarray, courses: np.ndarray) -> np.ndarray:
    """Return ``(k, k)``: mean over electrodes and samples of the product of two sources' unit signals."""
    return np.asarray((leads.T @ leads) * (courses @ courses.T) / (leads.shape[0] * courses.shape[1]))


def simulate_subject(
    subject: int,
    pictures_rgb: np.ndarray,
    shape_features: np.ndarray,
    train_mask: np.ndarray,
    params: BrainParams | None = None,
) -> SimulatedSubject:
    """Build a subject's brain and show it all pictures.

    Args:
        subject: number from 1; it is the seed of everything that is this subject's own.
        pictures_rgb: ``(n, h, w, 3)`` uint8, all pictures of the set in order, 32-64 px a side are enough.
        shape_features: ``(n, d)`` float32, pooled features of a network that is not the decoding target's.
        train_mask: ``(n,)`` bool, True for training pictures: only they set means and spreads.
        params: constants; the defaults are the frozen ones.

    Returns:
        The subject, ready to give noise-free averages, trials and its ground truth.

    Raises:
        ValueError: array lengths or types do not fit, or the subject number is below one.
    """
    params = params or BrainParams()
    train_mask = np.asarray(train_mask, dtype=bool)
    if pictures_rgb.dtype != np.uint8 or pictures_rgb.ndim != 4 or pictures_rgb.shape[-1] != 3:
        raise ValueError(f"pictures_rgb must be uint8 (n, h, w, 3), got {pictures_rgb.dtype} {pictures_rgb.shape}")
    if not len(pictures_rgb) == len(shape_features) == len(train_mask) or train_mask.sum() < 2 or subject < 1:
        raise ValueError(
            f"pictures {len(pictures_rgb)}, features {len(shape_features)} and mask {len(train_mask)} must agree, with "
            f"two training pictures or more (got {int(train_mask.sum())}) and a subject from 1 (got {subject})"
        )
    own = np.random.default_rng([params.code_seed, subject, 6])
    seed = int(own.integers(2**31))
    sources = build_sources(params.grids, params.counts, params.n_nuisance, params.anatomy, params.code_seed, seed)
    early = early_codes(pictures_rgb, train_mask, params, own)
    late = late_codes(shape_features, train_mask, params, own)
    images = np.arange(len(train_mask))[:, None]
    late["nuisance"] = counter_normal(params.code_seed, subject, -1, images, np.arange(params.n_nuisance))

    jitters = (jitter_distribution(params.jitter_early), jitter_distribution(params.jitter_late))
    tables = [
        Table(codes, sources, len(jitter) // 2)
        for codes, jitter in zip((early, {area: [code] for area, code in late.items()}), jitters, strict=True)
    ]
    shares = {**params.shares, "nuisance": params.nuisance}
    factor = float(np.exp(params.subject_gain * own.standard_normal()))
    scale_to_gain(tables, train_mask, shares, params.gain * factor)
    evoked = evoked_response(sources, [table.pad for table in tables], params.evoked_peak)
    pathways = [table.pathway(wave, jitter) for table, wave, jitter in zip(tables, evoked, jitters, strict=True)]
    record = {
        "gain_factor": factor,
        "ch_names": list(CH_NAMES),
        "sfreq": SFREQ,
        "tmin": 0.0,
        "low_level_features": list(LOW_LEVEL),
        "dipoles": [
            {
                "area": str(sources.area[i]),
                "hemisphere": "left" if sources.hemisphere[i] < 0 else "right",
                "position_mm": [round(float(v), 3) for v in sources.positions[i]],
                "normal": [round(float(v), 5) for v in sources.normals[i]],
                "latency": round(float(sources.latency[i]), 5),
                "width": round(float(sources.width[i]), 5),
            }
            for i in range(len(sources.area))
        ],
        "components": [item for table in tables for item in table.labels],
        "evoked": [{"source": s, "latency": t, "width": w, "strength": a} for s, t, w, a in EVOKED],
        "areas": {
            area: {"latency": round(float(sources.latency[sources.area == area].mean()), 5), "share": shares[area]}
            for area in (*EARLY_AREAS, *LATE_AREAS, "nuisance")
            if area in shares and (sources.area == area).any()
        },
    }
    return SimulatedSubject(subject, params, pathways[0], pathways[1], train_mask, record)


class Table:
    """All components of one pathway while they are being scaled: a component is one code that drives one dipole."""

    def __init__(self, codes: dict[str, list[np.ndarray]], sources: Sources, pad: int) -> None:
        self.pad = pad
        index = {area: np.flatnonzero(sources.area == area) for area in codes}
        dipoles = np.concatenate([index[area] for area, kinds in codes.items() for _ in kinds])
        self.areas = sources.area[dipoles]
        self.labels = [
            {"area": area, "dipole": int(dipole), "unit": kind}
            for area, kinds in codes.items()
            for kind in range(len(kinds))
            for dipole in index[area]
        ]
        self.codes = np.concatenate([kind for kinds in codes.values() for kind in kinds], axis=1).astype(np.float32)
        self.leads = sources.leads[:, dipoles].astype(np.float32)
        # Units of one retinotopic cell answer 6 ms apart (luminance first), so features do not share one time course.
        delay = 0.006 * np.array([item["unit"] for item in self.labels])
        times = np.arange(-pad, N_TIMES + pad) / SFREQ
        self.courses = time_course(times, sources.latency[dipoles] + delay, sources.width[dipoles])

    @property
    def inner(self) -> np.ndarray:
        """Time courses without padding."""
        return self.courses[:, self.pad : self.pad + N_TIMES]

    def pathway(self, evoked: np.ndarray, jitter: np.ndarray) -> Pathway:
        """Freeze."""
        return Pathway(self.codes, self.leads, self.courses, evoked, jitter)


def scale_to_gain(tables: list[Table], train_mask: np.ndarray, shares: dict[str, float], gain: float) -> None:
    """Scale codes in place so that areas have their shares of power and the whole has an RMS of ``gain`` uV.

    Power is the mean over electrodes, samples and training pictures. Areas whose codes correlate overlap at the
    electrodes, so the whole is scaled once more after the areas.
    """
    total = np.concatenate([t.codes for t in tables], axis=1)[train_mask].astype(np.float64)
    gram = signal_gram(np.concatenate([t.leads for t in tables], axis=1), np.concatenate([t.inner for t in tables]))
    power = gram * (total.T @ total / len(total))
    areas = np.concatenate([t.areas for t in tables])
    factors = np.zeros(len(areas))
    for area, share in shares.items():
        mine = areas == area
        own_power = power[np.ix_(mine, mine)].sum()
        factors[mine] = np.sqrt(share / own_power) if own_power > 0 else 0.0
    whole = factors @ power @ factors
    factors *= gain / np.sqrt(whole) if whole > 0 else 0.0
    for table, start in zip(tables, np.cumsum([0, *[len(t.areas) for t in tables[:-1]]]), strict=True):
        table.codes *= factors[start : start + len(table.areas)].astype(np.float32)


def evoked_response(sources: Sources, pads: list[int], peak: float) -> list[np.ndarray]:
    """Return the picture-independent response of each pathway, ``(63, N_TIMES + 2 pad)`` float32 uV."""
    place, normal = np.array(PARIETAL[0]), np.array(PARIETAL[1])
    flip = np.array([[1.0, 1, 1], [-1, 1, 1]])
    parietal = leadfield(place * flip, normal * flip).mean(axis=1)
    waves = [np.zeros((len(CH_NAMES), N_TIMES + 2 * pad)) for pad in pads]
    for source, latency, width, strength in EVOKED:
        lead = parietal if source == "parietal" else sources.leads[:, sources.area == source].mean(axis=1)
        group = 0 if source in EARLY_AREAS and latency < 0.15 else 1
        times = np.arange(-pads[group], N_TIMES + pads[group]) / SFREQ
        shape = np.exp(-0.5 * ((times - latency) / width) ** 2)
        waves[group] += strength * np.outer(lead / np.abs(lead).max(), shape)
    largest = np.abs(sum(w[:, pad : pad + N_TIMES] for w, pad in zip(waves, pads, strict=True))).max()
    return [(wave * peak / largest).astype(np.float32) for wave in waves]
