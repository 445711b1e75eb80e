"""Every constant of the simulated brain in one frozen object.

FROZEN on 2026-11-22, before encoders were compared (experiments/LOG.md): no number here, in features.py, forward.py,
noise.py, sources.py or subject.py changes any more; another brain is another set with another name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from eegrecon.pocket.noise import NoiseParams
from eegrecon.pocket.sources import Anatomy

N_TIMES = 250  # samples of a trial: 0-0.996 s at 250 Hz, as in the public THINGS-EEG2 files


@dataclass(frozen=True)
class BrainParams:
    """Every constant of the simulation.

    Attributes:
        gain: RMS in uV of the picture-driven signal of an average subject, over electrodes, samples and training
            pictures, for a single trial without jitter. Calibrated with experiments/calibrate_brain.py.
        subject_gain: spread of the log of a subject's own factor on the gain.
        shares: each area's share of the picture-driven power at the electrodes (chosen).
        nuisance: the same for the nuisance sources; shares and nuisance add up to one.
        grids: picture cells a side for the retinotopic areas.
        counts: dipoles per hemisphere of the other areas.
        n_nuisance: nuisance dipoles.
        hidden: units of the shape code's mixing.
        drive: saturation of its tanh.
        mixing: how far a subject's mixing of the shape codes within an area is from none (0) towards random.
        jitter_early: trial-to-trial spread of latency in s for V1, V2, V4.
        jitter_late: the same for all later sources (Kutas et al. 1977: tens of ms for late components).
        amplitude_jitter: spread of the log of a trial's amplitude.
        evoked_peak: largest value in uV of the response that is the same for every picture.
        code_seed: decides what all subjects share: the codes and the dipoles' places within an area.
        noise: background EEG.
        anatomy: differences between dipoles and subjects.
    """

    gain: float = 1.2
    subject_gain: float = 0.10
    shares: dict[str, float] = field(
        default_factory=lambda: {"V1": 0.10, "V2": 0.06, "V4": 0.06, "LOC": 0.20, "FFA": 0.12, "PPA": 0.12, "ITG": 0.20}
    )
    nuisance: float = 0.14
    grids: dict[str, int] = field(default_factory=lambda: {"V1": 6, "V2": 4, "V4": 4})
    counts: dict[str, int] = field(default_factory=lambda: {"LOC": 8, "FFA": 6, "PPA": 6, "ITG": 10})
    n_nuisance: int = 16
    hidden: int = 512
    drive: float = 1.5
    mixing: float = 0.6
    jitter_early: float = 0.008
    jitter_late: float = 0.012
    amplitude_jitter: float = 0.20
    evoked_peak: float = 5.0
    code_seed: int = 20200220
    noise: NoiseParams = field(default_factory=NoiseParams)
    anatomy: Anatomy = field(default_factory=Anatomy)
