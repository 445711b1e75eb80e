"""Multivariate noise normalisation (Guggenmos et al. 2018): channels whitened by the noise covariance of a session.

As in the THINGS-EEG2 preprocessing of NICE-EEG and EEG_Image_decode@49cb3a2 (EEG-preprocessing/preprocessing_utils.py,
`mvnn`; facts/atm.md 1.3): shrunk covariance per condition, mean over conditions, inverse square root.
"""

from __future__ import annotations

import numpy as np

MODES = ("epochs", "time")
PARTITIONS = ("train", "both")


def shrunk_covariance(samples: np.ndarray) -> np.ndarray:
    """Ledoit-Wolf covariance of standardised features, scaled back.

    This is what scikit-learn's discriminant analysis calls shrinkage "auto" (`sklearn.discriminant_analysis._cov`).

    Args:
        samples: (n_samples, n_chans).

    Returns:
        (n_chans, n_chans), in the square of the samples' unit.
    """
    from sklearn.covariance import ledoit_wolf
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()  # its notion of a constant channel too, which is left unscaled
    covariance, _ = ledoit_wolf(scaler.fit_transform(samples))
    found: np.ndarray = scaler.scale_[:, None] * covariance * scaler.scale_[None, :]
    return found


def condition_covariance(trials: np.ndarray, mode: str) -> np.ndarray:
    """Noise covariance of one condition's repetitions.

    Args:
        trials: (n_repetitions, n_chans, n_times).
        mode: "epochs": covariance over the samples of each trial, mean over trials (the default of NICE and ATM);
            "time": covariance over the trials at each sample, mean over samples (Gifford et al. 2022).

    Returns:
        (n_chans, n_chans).
    """
    if mode == "epochs":
        return np.mean([shrunk_covariance(trial.T) for trial in trials], axis=0)
    return np.mean([shrunk_covariance(trials[:, :, t]) for t in range(trials.shape[2])], axis=0)


def whitener(covariance: np.ndarray) -> np.ndarray:
    """The covariance to the power −1/2, (n_chans, n_chans); symmetric, so multiplying from either side is the same."""
    from scipy.linalg import fractional_matrix_power

    return np.real(fractional_matrix_power(covariance, -0.5))
