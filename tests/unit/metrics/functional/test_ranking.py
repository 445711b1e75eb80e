"""Numbers from counts: by hand, by enumerating orders, by drawing, and at the two known points."""

import itertools
import random

import numpy as np
import pytest
import torch

from eegrecon.metrics.functional.ranking import (
    kway_drawn,
    kway_from_counts,
    rank_counts,
    reciprocal_rank,
    target_rank,
)
from eegrecon.metrics.functional.retrieval import topk_retrieval

PERFECT = torch.zeros(4, dtype=torch.long)


def test_counts_by_hand():
    similarity = torch.tensor([[3.0, 1, 2, 3], [0, 0, 0, 0], [1, 2, 3, 4]])
    better, ties = rank_counts(similarity, torch.tensor([2, 0, 3]))
    assert better.tolist() == [2, 0, 0]
    assert ties.tolist() == [0, 3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_difference_of_rounding_is_a_tie(dtype):
    """What a matrix product of equal rows looks like on some processors: the last columns are rounded otherwise."""
    step = torch.finfo(dtype).eps
    similarity = 1 + torch.tensor([[0, 0, 0, -step, -step], [0, 2 * step, 0, 0, step]], dtype=dtype)
    better, ties = rank_counts(similarity, torch.tensor([3, 0]))
    assert (better.tolist(), ties.tolist()) == ([0, 0], [4, 4])
    better, ties = rank_counts(similarity + torch.tensor([0, 100 * step, 0, 0, 0], dtype=dtype), torch.tensor([3, 0]))
    assert (better.tolist(), ties.tolist()) == ([1, 1], [3, 3])


def test_integers_are_counted_as_they_are():
    similarity = torch.tensor([[3, 1, 2, 3], [10**15, 10**15 + 1, 10**15 - 1, 0]])
    for given in (similarity, similarity.to(torch.int32).clamp(max=9), similarity.clamp(max=9).to(torch.uint8)):
        better, ties = rank_counts(given, torch.tensor([2, 0]))
        assert (better[0].item(), ties[0].item()) == (2, 0)
    better, ties = rank_counts(similarity, torch.tensor([3, 0]))
    assert (better.tolist(), ties.tolist()) == ([0, 1], [1, 0])
    assert topk_retrieval(similarity, torch.tensor([0, 1]), 1).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_large_column_ties_nothing(dtype):
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(20, 50, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.arange(20)
    better, ties = rank_counts(similarity, target)
    order = similarity.argsort(1, descending=True)
    assert better.tolist() == [(row == column).nonzero().item() for row, column in zip(order, target, strict=True)]
    for scale in (1e6, -1e6):
        more = torch.cat([similarity, torch.full((20, 1), scale, dtype=dtype)], dim=1)
        assert torch.equal(rank_counts(more, target)[0], better + (scale > 0))
        assert torch.equal(rank_counts(more, target)[1], ties)
    small = rank_counts(similarity * 1e-9, target)  # not cosines: their own size counts
    assert torch.equal(small[0], better)
    assert torch.equal(small[1], ties)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_cosines_are_rounded_as_large_ones(dtype):
    """Equal unit vectors, summed in many orders: the noise of a cosine near 0 is that of one near 1."""
    generator = torch.Generator().manual_seed(1)
    query, image = torch.nn.functional.normalize(torch.randn(2, 512, generator=generator, dtype=torch.float64))
    image = torch.nn.functional.normalize(image - (image @ query) * query, dim=0) + 1e-4 * query  # a cosine near 0
    orders = [torch.randperm(512, generator=generator) for _ in range(40)]
    products = [(query.to(dtype)[order] * image.to(dtype)[order]).numpy() for order in orders]
    cosines = torch.tensor(np.stack([terms.cumsum()[-1] for terms in products]))  # one after the other, in this type
    assert (cosines - cosines[0]).abs().max() > 16 * torch.finfo(dtype).eps * cosines.abs().max()
    row = torch.cat([cosines, torch.tensor([0.9], dtype=dtype)])[None]
    better, ties = rank_counts(row, torch.tensor([0]))
    assert (better.item(), ties.item()) == (1, 39)


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_was_rounded_once(dtype, step):
    row = (0.5 + step * torch.tensor([[0, 1, 2, 3, -2, 20]], dtype=torch.float64)).to(dtype)
    better, ties = rank_counts(row, torch.tensor([0]))
    assert (better.item(), ties.item()) == (3, 1)  # the next number may be the same sum, rounded the other way
    generator = torch.Generator().manual_seed(2)
    exact = 0.5 + 0.1 * torch.rand(200, 200, generator=generator, dtype=torch.float64)
    ties = rank_counts(exact.to(torch.float16), torch.arange(200))[1].double()
    assert ties.mean() < 4  # 36 when every comparison had 16 units of float16


@pytest.mark.parametrize(("better", "ties"), [(0, 0), (0, 3), (2, 1), (4, 0), (1, 3)])
def test_ranks_equal_the_mean_over_all_orders_of_the_tied(better, ties):
    places = []
    for order in itertools.permutations(range(ties + 1)):
        places.append(better + 1 + order.index(0))
    counts = torch.tensor([better]), torch.tensor([ties])
    assert target_rank(*counts).item() == pytest.approx(sum(places) / len(places))
    assert reciprocal_rank(*counts).item() == pytest.approx(sum(1 / place for place in places) / len(places))


def test_perfect_and_chance():
    assert target_rank(PERFECT, PERFECT).tolist() == [1.0] * 4
    assert reciprocal_rank(PERFECT, PERFECT).tolist() == [1.0] * 4
    everything = torch.full((1,), 199)  # a constant similarity: all 199 others tie
    none = torch.zeros(1, dtype=torch.long)
    assert target_rank(none, everything).item() == 100.5
    assert reciprocal_rank(none, everything).item() == pytest.approx(sum(1 / i for i in range(1, 201)) / 200)
    for k_way in (2, 10, 200):
        assert kway_from_counts(none, everything, 200, k_way).item() == pytest.approx(1 / k_way)
        assert kway_drawn(PERFECT, PERFECT, 200, k_way).tolist() == [1.0] * 4


def official(similarity, target, k_way, draws):
    """One query: other columns by `random.sample`, the true one last, as EEG_Image_decode does it."""
    hits = 0
    for _ in range(draws):
        chosen = [*random.sample([j for j in range(len(similarity)) if j != target], k_way - 1), target]
        hits += int(similarity[chosen].argmax()) == k_way - 1
    return hits / draws


def test_drawing_is_the_official_draw_and_a_sample_of_the_exact_value():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(12, 30, generator=generator)
    target = torch.arange(12)
    counts = rank_counts(similarity, target)
    random.seed(0)
    for k_way in (2, 10):
        exact = kway_from_counts(*counts, 30, k_way)
        drawn = kway_drawn(*counts, 30, k_way, draws=3000, seed=1)
        theirs = torch.tensor([official(row, int(t), k_way, 3000) for row, t in zip(similarity, target, strict=True)])
        assert (drawn - exact).abs().max() < 0.035  # 3.8 standard errors of 3000 draws at most
        assert (theirs - exact).abs().max() < 0.035
        # a single draw is a hit or none, and its mean is what the field printed
        one = kway_drawn(*counts, 30, k_way, seed=2)
        assert set(one.tolist()) <= {0.0, 1.0}


def test_drawing_breaks_ties_at_random_and_is_seeded():
    better, ties = torch.full((4000,), 3), torch.full((4000,), 2)
    drawn = kway_drawn(better, ties, 20, 5, 2, seed=5)
    exact = kway_from_counts(better[:1], ties[:1], 20, 5, 2).item()
    assert drawn.mean().item() == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 4000) ** 0.5)
    assert torch.equal(drawn, kway_drawn(better, ties, 20, 5, 2, seed=5))
    assert not torch.equal(drawn, kway_drawn(better, ties, 20, 5, 2, seed=6))
    # nothing is left to chance when the whole gallery is drawn
    assert torch.equal(kway_drawn(better, 0 * ties, 20, 20, 5), kway_from_counts(better, 0 * ties, 20, 20, 5))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="outside the gallery of 3"):
        rank_counts(torch.zeros(1, 3), torch.tensor([3]))
    with pytest.raises(ValueError, match="k_way must be 2…200"):
        kway_from_counts(PERFECT, PERFECT, 200, 201)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        kway_drawn(PERFECT, PERFECT, 200, 2, draws=0)
