"""From cortical dipoles to the 63 electrodes of THINGS-EEG2, through MNE's spherical head model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The channel order of the public THINGS-EEG2 files (shared/facts/atm.md 1.3; NICE-EEG preprocessing). There is no Fz.
CH_NAMES: tuple[str, ...] = tuple(
    [
        "Fp1",
        "Fp2",
        "AF7",
        "AF3",
        "AFz",
        "AF4",
        "AF8",
        "F7",
        "F5",
        "F3",
        "F1",
        "F2",
        "F4",
        "F6",
        "F8",
        "FT9",
        "FT7",
        "FC5",
        "FC3",
        "FC1",
        "FCz",
        "FC2",
        "FC4",
        "FC6",
        "FT8",
        "FT10",
        "T7",
        "C5",
        "C3",
        "C1",
        "Cz",
        "C2",
        "C4",
        "C6",
        "T8",
        "TP9",
        "TP7",
        "CP5",
        "CP3",
        "CP1",
        "CPz",
        "CP2",
        "CP4",
        "CP6",
        "TP8",
        "TP10",
        "P7",
        "P5",
        "P3",
        "P1",
        "Pz",
        "P2",
        "P4",
        "P6",
        "P8",
        "PO7",
        "PO3",
        "POz",
        "PO4",
        "PO8",
        "O1",
        "Oz",
        "O2",
    ]
)


@dataclass(frozen=True)
class Area:
    """One visual area of the RIGHT hemisphere; the left one is its mirror image.

    Attributes:
        centre: position in mm, fsaverage/MNI coordinates (x right, y front, z up).
        normal: mean outward direction of the cortical surface there (normalised on use).
        latency: time of the first response peak in seconds after picture onset.
        width: standard deviation of that peak in seconds.
    """

    centre: tuple[float, float, float]
    normal: tuple[float, float, float]
    latency: float
    width: float


# Positions: V1/V2/V4 after Wang et al. 2015 (probabilistic atlas), LOC after Malach et al. 1995, FFA after Kanwisher
# et al. 1997, PPA after Epstein & Kanwisher 1998, ITG: anterior inferior temporal gyrus; rounded to a few mm.
# Latencies: V1 from C1/P1 (about 60-100 ms), mid-level 110-140 ms, LOC/N1 150-180 ms, category areas 170-220 ms,
# anterior temporal 220-300 ms (Cichy et al. 2014, doi:10.1038/nn.3635).
AREAS: dict[str, Area] = {
    "V1": Area((9.0, -93.0, 2.0), (0.10, -0.95, 0.30), 0.095, 0.014),
    "V2": Area((17.0, -92.0, 6.0), (0.35, -0.90, 0.25), 0.112, 0.016),
    "V4": Area((32.0, -80.0, -6.0), (0.75, -0.65, 0.05), 0.132, 0.018),
    "LOC": Area((46.0, -70.0, -2.0), (0.90, -0.42, 0.05), 0.165, 0.015),
    "FFA": Area((46.0, -50.0, -16.0), (0.93, -0.25, -0.15), 0.185, 0.017),
    "PPA": Area((30.0, -44.0, -10.0), (0.80, -0.30, -0.20), 0.200, 0.019),
    "ITG": Area((60.0, -22.0, -24.0), (1.00, 0.02, 0.00), 0.245, 0.024),
}
EARLY_AREAS = ("V1", "V2", "V4")
LATE_AREAS = ("LOC", "FFA", "PPA", "ITG")


def mirror(vectors: np.ndarray, hemisphere: np.ndarray) -> np.ndarray:
    """Mirror right-hemisphere vectors ``(n, 3)`` where ``hemisphere`` is -1 (left); +1 rows stay as they are."""
    mirrored = np.array(vectors, dtype=np.float64, copy=True)
    mirrored[:, 0] *= hemisphere
    return mirrored


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale every row of ``(n, 3)`` to length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def leadfield(positions_mm: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Compute what one nAm in each dipole shows at each electrode.

    Args:
        positions_mm: dipole positions ``(n, 3)`` in mm, fsaverage/MNI coordinates.
        normals: dipole directions ``(n, 3)``, normalised here.

    Returns:
        ``(63, n)`` float64 in uV per nAm, rows in `CH_NAMES` order, reference at infinity.

    Raises:
        RuntimeError: a dipole lies outside the brain sphere (MNE would drop it and shift all others).
    """
    import mne

    # The template is called standard_1005 up to mne 1.12; 1.13 renames it and warns about the old name.
    names = mne.channels.get_builtin_montages()
    montage = mne.channels.make_standard_montage("colin27_1005" if "colin27_1005" in names else "standard_1005")
    info = mne.create_info(list(CH_NAMES), 250.0, "eeg", verbose="ERROR")
    info.set_montage(montage, verbose="ERROR")
    # The montage lies in fsaverage's MRI frame. mne 1.13 silently drops most dipoles of a sphere model when a
    # non-identity `trans` moves them, so positions and normals go to head coordinates here and `trans` stays None.
    to_head = mne.channels.compute_native_head_t(montage, verbose="ERROR")["trans"]
    sources = {
        "rr": positions_mm / 1000.0 @ to_head[:3, :3].T + to_head[:3, 3],
        "nn": unit(np.asarray(normals, np.float64) @ to_head[:3, :3].T),
    }
    sphere = mne.make_sphere_model("auto", "auto", info, verbose="ERROR")
    space = mne.setup_volume_source_space(pos=sources, sphere=sphere, verbose="ERROR")
    solution = mne.make_forward_solution(
        info, trans=None, src=space, bem=sphere, meg=False, eeg=True, mindist=0.0, verbose="ERROR"
    )
    if solution["nsource"] != len(positions_mm) or tuple(solution["info"]["ch_names"]) != CH_NAMES:
        raise RuntimeError(f"MNE kept {solution['nsource']} of {len(positions_mm)} dipoles; one lies outside the brain")
    free = solution["sol"]["data"].reshape(len(CH_NAMES), len(positions_mm), 3)
    return np.asarray(np.einsum("cnk,nk->cn", free, sources["nn"]) * 1e6 * 1e-9)  # V per Am -> uV per nAm
