"""Intervals against published numbers, exact variances, and by how often they hold."""

import pytest
import torch

from benchmarks.coverage import coverage
from eegrecon.metrics.functional.intervals import _mean_and_variance, binomial_interval, crossed_bootstrap


def test_intervals_against_published_numbers():
    # 15 of 148: Newcombe 1998, table I (Wilson without continuity correction; Clopper-Pearson).
    assert binomial_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert binomial_interval(15, 148, method="clopper_pearson") == pytest.approx((0.0578, 0.1617), abs=5e-5)
    assert binomial_interval(0, 20)[0] == 0
    assert binomial_interval(20, 20)[1] == 1
    with pytest.raises(ValueError, match="method"):
        binomial_interval(1, 2, method="wald")
    with pytest.raises(ValueError, match="no proportion"):
        binomial_interval(3, 2)


def table(n_subjects=10, n_pictures=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n_subjects, n_pictures, generator=generator)


def test_it_says_what_was_resampled():
    assert crossed_bootstrap(table(5)).over == "subjects and pictures"
    assert crossed_bootstrap(table(4)).over == "pictures"
    assert crossed_bootstrap(table(1)).over == "pictures"


def test_few_subjects_give_the_interval_of_their_mean():
    values = table(3)
    assert crossed_bootstrap(values, seed=3) == crossed_bootstrap(values.double().mean(0, keepdim=True), seed=3)


def test_width_follows_what_varies():
    generator = torch.Generator().manual_seed(0)
    subjects = torch.randn(10, 1, generator=generator).double()
    pictures = torch.randn(1, 100, generator=generator).double()
    zero = torch.zeros(10, 100, dtype=torch.float64)
    for values, error, factor in (
        (subjects + zero, subjects.std().item() / 10**0.5, 2.262),  # Student's t with 9 degrees of freedom
        (pictures + zero, pictures.std().item() / 100**0.5, 1.984),
    ):
        found = crossed_bootstrap(values)
        assert found.value == pytest.approx(values.mean().item())
        assert found.high - found.low == pytest.approx(2 * factor * error, rel=0.2)
    # the same scores in any order of subjects and pictures mean the same
    both = subjects + pictures
    again = crossed_bootstrap(both[torch.randperm(10)][:, torch.randperm(100)])
    found = crossed_bootstrap(both)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=0.1)


def test_it_is_seeded_bounded_and_has_a_confidence():
    values = (table() < 0.03).double()
    found = crossed_bootstrap(values, seed=1)
    assert found == crossed_bootstrap(values, seed=1)
    assert found != crossed_bootstrap(values, seed=2)
    wide = crossed_bootstrap(values, seed=1, confidence=0.9999, draws=2000)
    assert wide.low < found.low < found.value < found.high < wide.high
    cut = crossed_bootstrap(values, seed=1, bounds=(found.low + 0.001, found.high - 0.001))
    assert (cut.low, cut.high) == (found.low + 0.001, found.high - 0.001)
    constant = crossed_bootstrap(torch.full((10, 20), 0.1))
    assert (constant.low, constant.high) == (constant.value, constant.value) == pytest.approx((0.1, 0.1))


def test_the_variance_is_that_of_the_mean():
    """Of subjects, pictures and noise of known spread, the mean varies as the estimate says, without bias."""
    generator = torch.Generator().manual_seed(0)
    s, p, count = 6, 9, 4000
    shapes = ((2.0, (count, s, 1)), (3.0, (count, 1, p)), (2.0, (count, s, p)))  # subjects, pictures, noise
    tables = sum(spread * torch.randn(*shape, generator=generator).double() for spread, shape in shapes)
    ones = torch.ones(1, s, dtype=torch.float64), torch.ones(1, p, dtype=torch.float64)
    truth = 2.0**2 / s + 3.0**2 / p + 2.0**2 / (s * p)
    assert tables.mean((1, 2)).var().item() == pytest.approx(truth, rel=0.07)
    estimate = torch.stack([_mean_and_variance(table, *ones)[1] for table in tables]).mean().item()
    assert estimate == pytest.approx(truth, rel=0.02)
    # counts say the same as a table with its rows and columns repeated
    rows, columns = torch.tensor([0, 0, 3, 5, 5, 5]), torch.tensor([8, 8, 1, 2, 3, 3, 3, 0, 4])
    counts = torch.bincount(rows, minlength=s)[None].double(), torch.bincount(columns, minlength=p)[None].double()
    explicit = _mean_and_variance(tables[0][rows][:, columns], *ones)
    torch.testing.assert_close(_mean_and_variance(tables[0], *counts), explicit)


@pytest.mark.parametrize("difficulty", [0.0, 0.8])
def test_coverage(difficulty):
    # 300 tables: .95 would be missed by 4 points in about one of a thousand seeds; the benchmark has many more
    share = coverage("studentised", difficulty=difficulty, tables=300, draws=500, n_pictures=60)
    assert 0.91 < share < 0.99


def test_plain_percentiles_are_too_wide():
    """What the correction is for: without it the crossed bootstrap covers nearly always where noise dominates."""
    share = coverage("percentile", difficulty=0.0, subject_spread=0.05, tables=150, draws=500, n_pictures=60)
    assert share > 0.975


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match=r"2 or more pictures, got \(10, 1\)"):
        crossed_bootstrap(torch.ones(10, 1))
    with pytest.raises(ValueError, match="every subject needs a score"):
        crossed_bootstrap(torch.full((10, 20), torch.nan))
    with pytest.raises(ValueError, match="draws must be at least 100"):
        crossed_bootstrap(torch.ones(10, 20), draws=3)
