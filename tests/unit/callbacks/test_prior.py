"""The prior's validation scores."""

import pytest
import torch

from eegrecon.callbacks.prior import score_prior


def rows(pred, true, image_index, subject=None, eeg=None):
    true = torch.as_tensor(true, dtype=torch.float32)
    return {
        "pred_image_embeds": torch.as_tensor(pred, dtype=torch.float32),
        "image_embeds": true,
        "eeg_embeds": true.clone() if eeg is None else torch.as_tensor(eeg, dtype=torch.float32),
        "image_index": torch.as_tensor(image_index),
        "subject": torch.ones(len(true), dtype=torch.long) if subject is None else torch.as_tensor(subject),
        "prior_loss": torch.arange(len(true), dtype=torch.float32),
    }


def test_scores_of_a_hand_written_case():
    true = [[1, 0], [0, 1], [-1, 0], [0, -1]]
    pred = [[2, 0], [2, 0], [-3, 0], [0, 4]]  # right, at a right angle, right, opposite
    scores = score_prior(rows(pred, true, [10, 11, 12, 13]), torch.arange(20))
    assert scores["prior_cosine"] == pytest.approx((1 + 0 + 1 - 1) / 4)
    # truths two rows on: (-1, 0), (0, -1), (1, 0), (0, 1)
    assert scores["prior_cosine_shuffled"] == pytest.approx((-1 + 0 - 1 + 1) / 4)
    assert scores["prior_norm_ratio"] == pytest.approx((2 + 2 + 3 + 4) / 4)
    assert scores["prior_retrieval_top1_4way"] == pytest.approx(0.5)
    assert scores["embed_retrieval_top1_4way"] == 1
    assert scores["embed_cosine"] == pytest.approx(1)
    assert scores["prior_loss"] == pytest.approx(1.5)


def test_scores_perfect_and_chance():
    true, noise = torch.randn(2, 400, 64, generator=torch.Generator().manual_seed(0))
    perfect = score_prior(rows(true, true, range(400)), torch.arange(400))
    chance = score_prior(rows(noise, true, range(400)), torch.arange(400))
    assert perfect["prior_cosine"] == pytest.approx(1)
    assert perfect["prior_norm_ratio"] == pytest.approx(1)
    assert perfect["prior_retrieval_top1_400way"] == 1
    assert abs(chance["prior_cosine"]) < 0.03
    assert chance["prior_retrieval_top1_400way"] < 0.02
    assert abs(perfect["prior_cosine_shuffled"]) < 0.03


def test_padded_duplicates_count_once_and_order_does_not_matter():
    true, pred = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    index, concepts = torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2])
    once = score_prior(rows(pred, true, index), concepts)
    order = torch.tensor([5, 3, 1, 0, 2, 4, 5, 3])
    padded = rows(pred[order], true[order], index[order]) | {"prior_loss": order.float()}
    assert score_prior(padded, concepts) == once
    assert "prior_retrieval_top1_3way" in once


def test_two_subjects_of_one_picture_are_two_rows():
    true = torch.eye(2).repeat(2, 1)
    pred = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    scores = score_prior(rows(pred, true, [7, 8, 7, 8], subject=[1, 1, 2, 2]), torch.arange(9))
    assert scores["prior_retrieval_top1_2way"] == pytest.approx(0.75)


def test_the_null_is_another_picture_however_many_subjects_saw_it():
    true = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    scores = score_prior(rows(true, true, [*range(50)] * 2, subject=[1] * 50 + [2] * 50))
    assert scores["prior_cosine"] == pytest.approx(1)
    assert abs(scores["prior_cosine_shuffled"]) < 0.1


def test_no_concepts_no_retrieval_and_embed_scores_need_equal_sizes():
    scores = score_prior(rows(torch.eye(2), torch.eye(2), [0, 1], eeg=torch.zeros(2, 3)))
    assert set(scores) == {"prior_loss", "prior_cosine", "prior_cosine_shuffled", "prior_norm_ratio"}
