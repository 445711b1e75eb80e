# ruff: noqa: T201 (a script that prints its table)
"""How the simulated brain's gain was chosen (1.2; FROZEN since): ridge accuracy against gain, for subjects 1-4.

python experiments/calibrate_brain.py INPUTS TARGETS [--subjects 1 2 3 4] [--gains 0.2 0.3] [--pool 1]

INPUTS is a folder with `pictures.npy` (n, h, w, 3) uint8, `features.npy` (n, 1280) and `train.npy` (n,) bool, in order
of images.json; TARGETS a .npy (n, dim) of what is decoded. An average of R trials is taken as the expected signal plus
one trial's noise / sqrt(R); the signal is linear in the gain, so one simulation serves all gains. The decoder is
models/encoders/ridge.py (penalty by 60-way retrieval on 60 validation concepts); 4 training and 80 test repetitions.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from eegrecon.models.encoders.ridge import fit_ridge
from eegrecon.pocket.brain import BrainParams, simulate_subject

EXEMPLARS, VAL_CONCEPTS = 10, 60


def averages(subject, pictures, features, train, pool):
    """Averaged trials without picture information, and what a gain of 1 adds: each (n, 63 * 250 / pool)."""
    silent, loud = (simulate_subject(subject, pictures, features, train, BrainParams(gain=g)) for g in (0.0, 1.0))
    same, truth = silent.clean([0]), loud.truth()["arrays"]
    noise = [silent.trials([image], 1)[0].reshape(-1, pool).mean(1) for image in range(len(train))]
    noise = (np.stack(noise) - same.reshape(-1, pool).mean(1)) / np.sqrt(np.where(train, 4, 80))[:, None]
    basis = np.einsum("kc,kt->kct", truth["topographies"], truth["time_courses"])
    signal = truth["codes"] @ basis.reshape(len(basis), -1, pool).mean(2)
    return noise.astype(np.float32), signal.astype(np.float32)


def top1(predicted, wanted):
    """Cosine retrieval of row i among all rows of `wanted`: top-1 and top-5."""
    a, b = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (predicted, wanted))
    similarity = a @ b.T
    rank = (similarity > np.diag(similarity)[:, None]).sum(1)
    return (rank < 1).mean(), (rank < 5).mean()


def accuracy(eeg, targets, fit, val, test):
    """Fit on `fit`, choose the penalty on `val`, return 200-way top-1, top-5, the penalty and its score."""
    x, y = torch.from_numpy(eeg), torch.from_numpy(targets)

    def score(found):
        found = found.numpy()
        return float(np.mean([top1(found[k::EXEMPLARS], targets[val][k::EXEMPLARS])[0] for k in range(EXEMPLARS)]))

    found = fit_ridge(x[fit], y[fit], val_x=x[val], score=score)
    return *top1((x[test] @ found.weight.T + found.bias).numpy(), targets[test]), found.alpha, found.scores[found.alpha]


def main():
    """Print a table of gain and accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("targets", type=Path)
    parser.add_argument("--subjects", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--gains", type=float, nargs="+", default=[0.2, 0.25, 0.3, 0.35, 0.4, 0.5])
    parser.add_argument("--pool", type=int, default=1)
    options = parser.parse_args()
    pictures, features, train = (np.load(options.inputs / f"{name}.npy") for name in ("pictures", "features", "train"))
    targets = np.load(options.targets).astype(np.float32)
    concepts = np.arange(train.sum()) // EXEMPLARS
    held_out = np.random.default_rng(0).permutation(concepts[-1] + 1)[:VAL_CONCEPTS]
    in_val = np.isin(concepts, held_out)
    fit, val, test = np.flatnonzero(~in_val), np.flatnonzero(in_val), np.flatnonzero(~train)
    table = []
    for subject in options.subjects:
        base, signal = averages(subject, pictures, features, train, options.pool)
        for gain in options.gains:
            row = accuracy(base + np.float32(gain) * signal, targets, fit, val, test)
            table.append((gain, *row[:2]))
            numbers = "top-1 {:.3f} top-5 {:.3f} penalty {} validation {:.3f}".format(*row)
            print(f"subject {subject} gain {gain:.3f}: {numbers}", flush=True)
    for gain in options.gains:
        rows = np.array([row[1:] for row in table if row[0] == gain])
        print(f"mean of {len(rows)} at gain {gain:.3f}: top-1 {rows[:, 0].mean():.3f} top-5 {rows[:, 1].mean():.3f}")


if __name__ == "__main__":
    main()
