"""The exact Wilcoxon test against enumeration, against scipy, and at its floor."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, wilcoxon

from eegrecon.metrics.functional.paired import paired_wilcoxon


def by_enumeration(difference):
    difference = np.array([d for d in difference if d != 0])
    ranks = rankdata(abs(difference))
    observed = ranks[difference > 0].sum()
    sums = np.array([(ranks * signs).sum() for signs in itertools.product((0, 1), repeat=len(ranks))])
    return min(1.0, 2 * min((sums <= observed).mean(), (sums >= observed).mean()))


@pytest.mark.parametrize("seed", range(6))
def test_equals_enumeration_with_ties_and_zeros(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 6, 9).astype(float), rng.integers(0, 5, 9).astype(float)
    found = paired_wilcoxon(torch.from_numpy(first), torch.from_numpy(second))
    assert found.p == pytest.approx(by_enumeration(first - second))
    assert found.n == 9
    assert found.n_different == (first != second).sum()
    assert found.floor == 2 / 2**found.n_different


@pytest.mark.parametrize("n", [3, 10, 25])
def test_equals_scipy_where_nothing_ties(n):
    difference = np.random.default_rng(n).normal(0.3, 1, n)
    found = paired_wilcoxon(torch.from_numpy(difference), torch.zeros(n, dtype=torch.float64))
    assert found.p == pytest.approx(wilcoxon(difference, method="exact").pvalue)


def test_the_floor_is_what_a_clean_sweep_gives():
    for n, floor in ((10, 0.001953125), (5, 0.0625), (4, 0.125), (1, 1.0)):
        better = torch.linspace(0.2, 0.6, n)
        found = paired_wilcoxon(better + torch.linspace(0.01, 0.03, n), better)
        assert (found.p, found.floor) == (floor, floor)
    same = paired_wilcoxon(torch.ones(10), torch.ones(10))
    assert (same.p, same.n_different, same.floor) == (1.0, 0, 1.0)


def test_rounding_is_no_difference():
    first = torch.full((6,), 0.1, dtype=torch.float64) * 3
    assert paired_wilcoxon(first, torch.full((6,), 0.3, dtype=torch.float64)).n_different == 0
    # .3-.2 and .2-.1 differ in their last bits, and tie
    found = paired_wilcoxon(torch.tensor([0.3, 0.2, 0.9]).double(), torch.tensor([0.2, 0.3, 0.1]).double())
    assert found.statistic == 1.5 + 3


def test_p_is_uniform_under_the_null():
    rng = np.random.default_rng(0)
    p = np.array([paired_wilcoxon(torch.from_numpy(rng.normal(size=10)), torch.zeros(10)).p for _ in range(1000)])
    assert (p <= 0.05).mean() == pytest.approx(0.0488, abs=0.02)  # 50 of the 1024 sign choices lie at or below .05


def test_bad_input_is_refused():
    for first, second in ((torch.ones(3), torch.ones(4)), (torch.ones(0), torch.ones(0)), (torch.ones(2, 2),) * 2):
        with pytest.raises(ValueError, match="two vectors of one length"):
            paired_wilcoxon(first, second)
    with pytest.raises(ValueError, match="finite"):
        paired_wilcoxon(torch.tensor([1.0, torch.nan]), torch.ones(2))
