import numpy as np
import pytest
import torch
from scipy.stats import binomtest, pearsonr

from eegrecon.metrics.functional.identification import (
    clopper_pearson,
    derangement,
    mean_interval,
    null_interval,
    pearson_matrix,
    two_way_identification,
)


def by_hand(pred, true):
    """The definition as loops over scipy's Pearson correlation."""
    scores = []
    for j in range(len(pred)):
        own = pearsonr(true[j], pred[j]).statistic
        others = [pearsonr(true[i], pred[j]).statistic for i in range(len(true)) if i != j]
        scores.append(np.mean([other < own for other in others]))
    return np.array(scores)


def test_equals_the_definition_written_as_loops():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(12, 7))
    pred = true + 2 * rng.normal(size=(12, 7))
    scores = two_way_identification(torch.tensor(pred), torch.tensor(true)).numpy()
    np.testing.assert_allclose(scores, by_hand(pred, true), atol=1e-12)
    assert 0.5 < scores.mean() < 1


def test_distractors_are_seen_pictures_not_reconstructions():
    # reconstruction 0 resembles both seen pictures alike but its own a little more; comparing along the other axis
    # (distractor reconstructions) would give another answer
    true = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    pred = torch.tensor([[1.0, 0.9, 0, 0], [1, 0.9, 0, 0], [0, 0, 1, 0]])
    assert two_way_identification(pred, true).tolist() == [1.0, 0.5, 1.0]


def test_perfect_is_one_and_noise_is_chance():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(200, 64, generator=generator)
    assert two_way_identification(true, true).tolist() == [1.0] * 200
    noise = two_way_identification(torch.randn(200, 64, generator=generator), true).mean().item()
    low, high = null_interval(200)
    assert low < noise < high


def test_reconstructions_without_information_score_exactly_chance():
    true = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    flat = two_way_identification(torch.full((20, 8), 3.0), true)
    assert flat.tolist() == [0.5] * 20
    same = two_way_identification(true[:1].expand(20, 8), true)
    assert same.mean().item() == pytest.approx(0.5)


def test_scale_and_offset_of_features_do_not_matter():
    generator = torch.Generator().manual_seed(2)
    true, pred = torch.randn(2, 15, 9, generator=generator)
    assert torch.equal(two_way_identification(pred, true), two_way_identification(pred * 5 - 3, true))


@pytest.mark.parametrize("shapes", [((3, 4), (4, 4)), ((1, 4), (1, 4)), ((3,), (3,))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="two feature matrices"):
        two_way_identification(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_pearson_matrix_equals_numpy():
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(4, 10)), rng.normal(size=(6, 10))
    expected = np.corrcoef(np.concatenate([first, second]))[:4, 4:]
    np.testing.assert_allclose(pearson_matrix(torch.tensor(first), torch.tensor(second)), expected, atol=1e-12)


def test_derangement_moves_everything_and_is_repeatable():
    for n in (2, 3, 10, 201):
        order = derangement(n, seed=5)
        assert sorted(order.tolist()) == list(range(n))
        assert not (order == torch.arange(n)).any()
        assert torch.equal(order, derangement(n, seed=5))
    assert not torch.equal(derangement(50, 0), derangement(50, 1))
    with pytest.raises(ValueError, match="two elements"):
        derangement(1, 0)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (57, 200)])
def test_clopper_pearson_equals_scipy(k, n):
    expected = binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((expected.low, expected.high))


def test_null_interval_holds_what_it_promises():
    low, high = null_interval(200, 0.5, 0.99)
    draws = np.random.default_rng(0).binomial(200, 0.5, 20000) / 200
    assert 0.99 <= ((draws >= low) & (draws <= high)).mean() < 0.996


def test_mean_interval_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        low, high = mean_interval(torch.randn(30, generator=generator) + 2)
        covered += low <= 2 <= high
    assert 0.92 < covered / 400 < 0.98
    assert mean_interval(torch.tensor([0.3])) == pytest.approx((0.3, 0.3))
