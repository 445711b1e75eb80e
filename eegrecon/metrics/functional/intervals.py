"""Intervals of proportions, and of means over subjects and pictures that are crossed."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64, Num
from torch import Tensor

from eegrecon.metrics.functional.identification import clopper_pearson

FEWEST_SUBJECTS = 5  # below it, the spread over subjects cannot be told from so few
CHUNK = 500  # resamples at a time, which bounds memory
SMALLEST = 0.05  # of the table's variance, in a resample
Over = Literal["subjects and pictures", "pictures"]


def binomial_interval(
    successes: float, n: int, confidence: float = 0.95, method: str = "wilson"
) -> tuple[float, float]:
    """Interval of a success probability.

    Args:
        successes: number of successes; a sum of expected hits may be fractional.
        n: number of trials, at least 1.
        confidence: such as 0.95.
        method: "wilson" (Wilson 1927, score interval) or "clopper_pearson" (1934, never too narrow).

    Returns:
        (low, high) in [0, 1].

    Raises:
        ValueError: the numbers are no proportion, or the method is unknown.

    >>> [round(bound, 4) for bound in binomial_interval(5, 10)]
    [0.2366, 0.7634]
    """
    from scipy.stats import norm

    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"no proportion: {successes} of {n} at confidence {confidence}")
    if method == "wilson":
        z = float(norm.ppf((1 + confidence) / 2))
        rate, weight = successes / n, z * z / n
        centre = (rate + weight / 2) / (1 + weight)
        half = z * math.sqrt(rate * (1 - rate) / n + weight / (4 * n)) / (1 + weight)
        return max(0.0, centre - half), min(1.0, centre + half)
    if method == "clopper_pearson":
        return clopper_pearson(successes, n, confidence)
    raise ValueError(f"method must be wilson or clopper_pearson, got {method!r}")


class CrossedInterval(NamedTuple):
    """A mean over subjects and pictures with its interval.

    Attributes:
        value: Mean over everything.
        low: Lower bound.
        high: Upper bound.
        over: What was resampled, so what the interval speaks about: other subjects and other pictures, or these very
            subjects and other pictures.
    """

    value: float
    low: float
    high: float
    over: Over


def crossed_bootstrap(
    values: Num[Tensor, ...],
    *,
    draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> CrossedInterval:
    """Interval of the mean of a subjects x pictures table, both resampled with replacement, independently.

    All subjects see the same pictures, so scores of one picture are alike across subjects: neither the subjects'
    means nor all scores together are independent, and an interval that takes them for such is too narrow.

    The percentiles of the crossed ("pigeonhole") bootstrap are too wide, since it counts the noise of single scores
    about three times (Owen 2007, The pigeonhole bootstrap: sigma_a^2/S + sigma_b^2/P + 3 sigma_e^2/(SP)):
    98 to 100 % coverage instead of 95 where that noise dominates, as in hits of 10 subjects and 200 pictures. So the
    bootstrap is studentised (bootstrap-t, Efron & Tibshirani 1993, section 12.5): each resample is divided by its own
    standard error, from mean squares of the two-way layout without replication, (MSA + MSB - MSE) / (SP), at least
    what one factor alone gives. Resample and data are inflated alike, and the ratio is not. What is left is the
    narrowness of resampling few subjects, by the factor sqrt((S - 1) / S) (Hesterberg 2015, What teachers should know
    about the bootstrap: narrowness bias), which the bounds are widened by. `benchmarks/coverage.py` measures the
    coverage: 94 to 97 % for 10 subjects.

    With fewer than `FEWEST_SUBJECTS` subjects the pictures alone are resampled, and the result says so: how subjects
    differ cannot be learnt from four.

    Args:
        values: (n_subjects, n_pictures), finite, one score a cell; at least 2 pictures.
        draws: Resamples.
        seed: Of the resamples.
        confidence: Such as 0.95.
        bounds: What the mean can be, such as (0, 1) for proportions; the interval is cut there.

    Returns:
        Value, bounds and what was resampled; the bounds equal the value where no score differs from another.

    Raises:
        ValueError: The shape does not fit, a value is not finite, or a number makes no sense.
    """
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise ValueError(f"values must be (n_subjects, n_pictures) with 2 or more pictures, got {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ValueError("values holds NaN or infinite scores: every subject needs a score of every picture")
    if draws < 100 or not 0 < confidence < 1:
        raise ValueError(f"draws must be at least 100 and confidence in (0, 1), got {draws} and {confidence}")
    table = values.detach().cpu().double()
    over: Over = "subjects and pictures"
    if len(table) < FEWEST_SUBJECTS:
        over, table = "pictures", table.mean(0, keepdim=True)
    centre = float(table.mean())
    generator = torch.Generator().manual_seed(seed)
    everyone = torch.ones(1, len(table), dtype=torch.float64), torch.ones(1, table.shape[1], dtype=torch.float64)
    variance = float(_mean_and_variance(table, *everyone)[1])
    means, variances = [], []
    for start in range(0, draws, CHUNK):
        count = min(CHUNK, draws - start)
        subjects, pictures = (_counts(count, n, generator) for n in table.shape)
        mean, spread = _mean_and_variance(table, subjects, pictures)
        means.append(mean)
        variances.append(spread)
    # A resample in which all is alike has no spread to divide by: it gets a little of the whole's.
    errors = torch.cat(variances).clamp(min=SMALLEST * variance).sqrt()
    if variance <= 1e-24 * max(1.0, centre * centre):  # rounding of the last bits is no spread
        return CrossedInterval(centre, centre, centre, over)
    ratio = (torch.cat(means) - centre) / errors
    tail = (1 - confidence) / 2
    lowest, highest = torch.quantile(ratio, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    error = math.sqrt(variance)
    if len(table) > 1:
        error *= math.sqrt(len(table) / (len(table) - 1))
    low, high = centre - highest * error, centre - lowest * error
    if bounds is not None:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return CrossedInterval(centre, low, high, over)


def _counts(draws: int, n: int, generator: torch.Generator) -> Float64[Tensor, "draws n"]:
    """How often each of n is drawn in n draws with replacement."""
    chosen = torch.randint(n, (draws, n), generator=generator)
    counts = torch.zeros(draws, n, dtype=torch.float64)
    return counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))


def _mean_and_variance(
    table: Float64[Tensor, "s p"], subjects: Float64[Tensor, "b s"], pictures: Float64[Tensor, "b p"]
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Mean of the table and the variance of that mean, under every row of counts."""
    s, p = table.shape
    rows = pictures @ table.T / p  # (b, s): each subject's mean over the drawn pictures
    columns = subjects @ table / s  # (b, p)
    mean = (rows * subjects).sum(1) / s
    between_columns = s * (pictures * (columns - mean[:, None]) ** 2).sum(1)
    msb = between_columns / (p - 1)
    if s == 1:
        return mean, msb / p
    between_rows = p * (subjects * (rows - mean[:, None]) ** 2).sum(1)
    total = ((subjects @ table**2) * pictures).sum(1) - s * p * mean**2
    msa, mse = between_rows / (s - 1), (total - between_rows - between_columns) / ((s - 1) * (p - 1))
    # No component of variance is negative, though its estimate may be.
    return mean, torch.maximum(msa + msb - mse, torch.maximum(msa, msb)) / (s * p)
