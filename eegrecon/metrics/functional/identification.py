"""Two-way identification of reconstructions, and the intervals its means are read with."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64, Num
from torch import Tensor


def pearson_matrix(first: Num[Tensor, "n d"], second: Num[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """Pearson correlations of all pairs of rows.

    Args:
        first: (n, d) features.
        second: (m, d) features.

    Returns:
        (n, m) float64 correlations in [-1, 1]; a row without variance correlates 0 with everything.
    """
    rows = []
    for features in (first, second):
        features = features.double() - features.double().mean(dim=1, keepdim=True)
        norm = features.norm(dim=1, keepdim=True)
        flat = norm <= 1e-12 * features.shape[1]
        rows.append(torch.where(flat, 0.0, features / norm.masked_fill(flat, 1.0)))
    return (rows[0] @ rows[1].T).clamp(-1.0, 1.0)


def two_way_identification(pred_features: Num[Tensor, ...], true_features: Num[Tensor, ...]) -> Float64[Tensor, " n"]:
    """Share of other seen pictures that resemble a reconstruction less than its own seen picture does.

    For reconstruction j: the share of i ≠ j with r(true_i, pred_j) < r(true_j, pred_j); the distractors are seen
    pictures, not reconstructions, and all of them are compared (no sampling). The definition is MindEye's
    (Scotti et al. 2023; facts/atm.md section 6) with one deviation: a tie counts one half instead of nothing, so that
    reconstructions that carry no information (constant features, say) score chance, exactly 0.5.

    Args:
        pred_features: (n, d) features of the reconstructions, n ≥ 2.
        true_features: (n, d) features of the seen pictures in the same order.

    Returns:
        (n,) float64 scores in [0, 1], one per reconstruction; chance 0.5.

    Raises:
        ValueError: Shapes differ, or there are fewer than two pictures.

    >>> features = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    >>> two_way_identification(features, features).tolist()
    [1.0, 1.0, 1.0]
    """
    if pred_features.shape != true_features.shape or pred_features.ndim != 2 or len(pred_features) < 2:
        raise ValueError(
            "two_way_identification needs two feature matrices of one shape (n ≥ 2, d), got "
            f"{tuple(pred_features.shape)} and {tuple(true_features.shape)}"
        )
    correlation = pearson_matrix(true_features, pred_features)  # (seen, reconstruction)
    own = correlation.diagonal()
    # equal pictures differ by rounding of the last bits, which must stay ties
    tied = (correlation - own).abs() <= 1e-12
    wins = ((correlation < own) & ~tied).sum(dim=0) + 0.5 * (tied.sum(dim=0) - 1)
    return wins.double() / (len(own) - 1)


def derangement(n: int, seed: int) -> Int64[Tensor, " {n}"]:
    """A random permutation that leaves nothing in its place: (n,) int64, the same for the same (n, seed).

    Sattolo's algorithm: one cycle through all n, so no element keeps its place.

    Raises:
        ValueError: n < 2, where there is none.
    """
    if n < 2:
        raise ValueError(f"a derangement needs at least two elements, got {n}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(n)
    for i in range(n - 1, 0, -1):
        j = int(torch.randint(i, (1,), generator=generator))
        order[[i, j]] = order[[j, i]]
    return order


def clopper_pearson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of a proportion (Clopper & Pearson 1934).

    `successes` may be fractional: for a mean of scores in [0, 1], such as two-way identification, the sum of scores.
    A score in [0, 1] varies no more than a coin of the same mean, so the interval is then on the safe side; each
    picture counts as one trial, since the comparisons of one picture are not independent.

    >>> [round(x, 3) for x in clopper_pearson(5, 10)]
    [0.187, 0.813]
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = 0.0 if successes <= 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes >= n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def null_interval(n: int, chance: float = 0.5, level: float = 0.99) -> tuple[float, float]:
    """Where the proportion of n trials falls with probability `level` if nothing but chance is at work.

    >>> null_interval(200)
    (0.41, 0.59)
    """
    from scipy.stats import binom

    low, high = binom.interval(level, n, chance)
    return float(low) / n, float(high) / n


def mean_interval(values: Num[Tensor, " n"], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean over pictures, for scores that are no proportions (correlations, SSIM).

    Args:
        values: (n,) scores.
        level: Coverage.

    Returns:
        (low, high); both the mean when n is 1.
    """
    from scipy.stats import t

    mean, n = float(values.double().mean()), len(values)
    if n < 2:
        return mean, mean
    half = float(t.ppf(0.5 + level / 2, n - 1)) * float(values.double().std()) / n**0.5
    return mean - half, mean + half
