"""Retrieval by hand, by sorting, by simulation, and at its two known points."""

import itertools

import pytest
import torch
from scipy.stats import hypergeom

from eegrecon.metrics.functional.intervals import binomial_interval
from eegrecon.metrics.functional.retrieval import (
    concept_ranks,
    concept_retrieval,
    first_rows,
    retrieval_kway,
    topk_retrieval,
)

# Hand-written, after big_vision's test: 4 queries, 8 pictures.
SIMILARITY = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],  # target 0 is first
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],  # target 6 is third
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],  # target 0 is last
        [0.5, 0.5, 0.1, 0.5, 0.9, 0.0, 0.0, 0.0],  # target 1 ties with two others behind one
    ]
)
TARGET = torch.tensor([0, 6, 0, 1])


@pytest.mark.parametrize(
    ("k", "hits"),
    [(1, [1, 0, 0, 0]), (2, [1, 0, 0, 1 / 3]), (3, [1, 1, 0, 2 / 3]), (4, [1, 1, 0, 1]), (8, [1, 1, 1, 1])],
)
def test_by_hand(k, hits):
    assert topk_retrieval(SIMILARITY, TARGET, k).tolist() == pytest.approx(hits)


def test_equals_sorting_where_nothing_ties():
    torch.manual_seed(0)
    similarity, target = torch.randn(50, 20), torch.randint(20, (50,))
    for k in (1, 5):
        expected = (similarity.argsort(1, descending=True)[:, :k] == target[:, None]).any(1)
        assert topk_retrieval(similarity, target, k).tolist() == expected.tolist()


def test_perfect_chance_and_constant():
    assert topk_retrieval(torch.eye(200), torch.arange(200), 1).mean() == 1
    constant = topk_retrieval(torch.zeros(7, 200), torch.arange(7), 5)
    assert constant.tolist() == pytest.approx([5 / 200] * 7)
    torch.manual_seed(0)
    noise = topk_retrieval(torch.randn(4000, 50), torch.randint(50, (4000,)), 5).mean()
    low, high = binomial_interval(400, 4000, 0.999)
    assert low < noise < high


@pytest.mark.parametrize(("k_way", "k"), [(2, 1), (3, 1), (4, 2), (8, 1), (8, 5)])
def test_kway_equals_all_distractor_sets(k_way, k):
    expected = []
    for row, target in zip(SIMILARITY, TARGET.tolist(), strict=True):
        others = [j for j in range(8) if j != target]
        hits = [
            topk_retrieval(row[[target, *chosen]][None], torch.tensor([0]), k).item()
            for chosen in itertools.combinations(others, k_way - 1)
        ]
        expected.append(sum(hits) / len(hits))
    assert retrieval_kway(SIMILARITY, TARGET, k_way, k).tolist() == pytest.approx(expected)


def test_kway_known_points_and_scipy():
    torch.manual_seed(0)
    similarity, target = torch.randn(30, 200), torch.randint(200, (30,))
    assert retrieval_kway(torch.eye(200), torch.arange(200), 50).tolist() == pytest.approx([1] * 200)
    assert retrieval_kway(torch.zeros(3, 200), torch.arange(3), 50).tolist() == pytest.approx([1 / 50] * 3)
    better = (similarity > similarity.gather(1, target[:, None])).sum(1).numpy()
    expected = hypergeom.cdf(4, 199, better, 49)
    assert retrieval_kway(similarity, target, 50, 5).tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    torch.testing.assert_close(retrieval_kway(similarity, target, 200, 5), topk_retrieval(similarity, target, 5))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="outside the gallery"):
        topk_retrieval(SIMILARITY, torch.tensor([0, 1, 2, 8]), 1)
    with pytest.raises(ValueError, match="diverged"):
        topk_retrieval(SIMILARITY.clone().index_fill_(1, torch.tensor([3]), float("nan")), TARGET, 1)
    with pytest.raises(ValueError, match="k must"):
        topk_retrieval(SIMILARITY, TARGET, 0)
    with pytest.raises(ValueError, match=r"2…8"):
        retrieval_kway(SIMILARITY, TARGET, 9)
    with pytest.raises(ValueError, match=r"\(q, g\)"):
        topk_retrieval(SIMILARITY, TARGET[:2], 1)


def made(n_concepts=6, pictures=3, subjects=2):
    index, concept = [], []
    for c in range(n_concepts):
        for e in range(pictures):
            index += [100 + 10 * c + e] * subjects
            concept += [c + 50] * subjects
    torch.manual_seed(0)
    table = {i: torch.randn(16) for i in sorted(set(index))}
    image = torch.stack([table[i] for i in index])
    return image, torch.tensor(index), torch.tensor(concept)


def test_concepts_give_n_whatever_the_number_of_pictures():
    image, index, concept = made()
    scores = concept_retrieval(2 * image, image, index, concept)
    assert scores == (6, 1.0, 1.0, 36)
    order = torch.randperm(len(index))
    noisy = image + 1.5 * torch.randn_like(image)
    one = concept_retrieval(noisy, image, index, concept)
    assert one == concept_retrieval(noisy[order], image[order], index[order], concept[order])
    # Oracle: per exemplar rank, a 6-way problem of its own.
    cosine = torch.nn.functional.cosine_similarity
    hits = []
    for i in range(len(index)):
        gallery = [j for j in range(len(index)) if index[j] % 10 == index[i] % 10]
        best = max(gallery, key=lambda j: cosine(noisy[i], image[j], dim=0).item())
        hits.append(float(index[best] == index[i]))
    assert one.top1 == pytest.approx(sum(hits) / len(hits))
    assert 1 / 6 < one.top1 < 1


def test_incomplete_galleries_are_left_out():
    image, index, concept = made(subjects=1)
    keep = index != 151  # the second picture of the last concept: its third becomes the second, and none is third
    scores = concept_retrieval(image[keep], image[keep], index[keep], concept[keep])
    assert scores == (6, 1.0, 1.0, 12)


def test_the_counts_behind_validation():
    image, index, concept = made()
    noisy = image + 1.5 * torch.randn_like(image)
    ranks = concept_ranks(noisy, image, index, concept)
    scores = concept_retrieval(noisy, image, index, concept)
    assert sorted(ranks.row.tolist()) == list(range(36))
    assert scores.top1 == pytest.approx((ranks.better == 0).double().mean().item())
    assert scores.top5 == pytest.approx((ranks.better < 5).double().mean().item())
    assert ranks.n_way == 6


def test_first_rows():
    assert first_rows(torch.tensor([[2, 1], [1, 5], [2, 1], [1, 2]])).tolist() == [3, 1, 0]
