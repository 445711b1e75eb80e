"""Which level a training row takes: at random, the mean, or by how its picture fares."""

import numpy as np
import pytest
import torch

from eegrecon.modules.target_levels import BOUND, SMOOTHING, LevelMixing


def levels(b, n_levels=3):
    """Row r at level k is (r, k)."""
    row, level = torch.meshgrid(torch.arange(b), torch.arange(n_levels), indexing="ij")
    return torch.stack([row, level], dim=2).float()


def test_random_takes_every_level_equally_often():
    uniform = torch.rand(3000, generator=torch.Generator().manual_seed(0))
    out = LevelMixing("random", 3, 0, 5)(levels(3000), torch.zeros(3000, dtype=torch.long), uniform)
    assert torch.equal(out[:, 0], torch.arange(3000.0))  # of its own row
    assert torch.equal(out[:, 1], (uniform * 3).floor())
    assert np.bincount(out[:, 1].long()).tolist() == pytest.approx([1000, 1000, 1000], abs=100)


def test_mean():
    out = LevelMixing("mean", 3, 0, 5)(levels(4), torch.arange(4), torch.zeros(4))
    assert out[:, 1].tolist() == [1, 1, 1, 1]


def vectors(cosines):
    """Pairs of vectors of these cosines."""
    cosines = torch.as_tensor(cosines, dtype=torch.float32)
    eeg = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    return 3 * eeg, torch.tensor([[2.0, 0.0]]).expand(len(cosines), 2)


def epoch(mixing, cosines, index):
    mixing.observe(*vectors(cosines), torch.as_tensor(index))
    mixing.end_epoch()


def test_a_picture_unlike_its_eeg_is_blurred_more_and_one_too_like_less():
    mixing = LevelMixing("uncertainty", 3, 1, 200)
    assert set(mixing.level.tolist()) == {1}
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.3, 0.05, size=200).clip(-0.9, 0.9)
    cosines[[3, 4]] = 0.9, -0.4
    epoch(mixing, cosines, np.arange(200))
    z = (cosines - cosines.mean()) / cosines.std(ddof=1)
    wanted = 1 - (z > BOUND).astype(int) + (z < -BOUND).astype(int)
    assert mixing.level.tolist() == wanted.tolist()
    assert (mixing.level[3], mixing.level[4]) == (0, 2)
    out = mixing(levels(200), torch.arange(200), torch.zeros(200))
    assert out[:, 1].tolist() == wanted.tolist()
    shares = mixing.shares()
    assert shares["levels_blurrier"] == pytest.approx((wanted > 1).mean())
    assert shares["levels_sharper"] == pytest.approx((wanted < 1).mean())


def test_more_levels_take_more_steps_and_end_somewhere():
    mixing = LevelMixing("uncertainty", 5, 1, 100)
    cosines = np.full(100, 0.3)
    cosines[::2] += 0.01
    cosines[[0, 1]] = 0.99, -0.99  # many standard deviations away
    epoch(mixing, cosines, np.arange(100))
    assert (mixing.level[0], mixing.level[1]) == (0, 4)
    assert set(mixing.level[2:].tolist()) == {1}


def test_similarity_is_smoothed_over_epochs_and_averaged_within_one():
    mixing = LevelMixing("uncertainty", 3, 1, 4)
    epoch(mixing, [0.2, 0.4, 0.5], [2, 2, 3])
    assert mixing.similarity[2].item() == pytest.approx(0.3)
    assert mixing.similarity[:2].isnan().all()
    epoch(mixing, [0.8], [2])
    assert mixing.similarity[2].item() == pytest.approx(SMOOTHING * 0.8 + (1 - SMOOTHING) * 0.3)
    assert mixing.similarity[3].item() == pytest.approx(0.5)  # not seen this time
    assert mixing.level.tolist() == [1, 1, 1, 1]
    assert mixing.count.sum() == 0


def test_without_any_spread_nothing_moves():
    mixing = LevelMixing("uncertainty", 3, 1, 3)
    epoch(mixing, [0.5, 0.5, 0.5], [0, 1, 2])
    assert mixing.level.tolist() == [1, 1, 1]


def test_what_it_learnt_is_in_its_state():
    mixing = LevelMixing("uncertainty", 3, 1, 3)
    epoch(mixing, [0.1, 0.5, 0.9], [0, 1, 2])
    twin = LevelMixing("uncertainty", 3, 1, 3)
    twin.load_state_dict(mixing.state_dict())
    assert torch.equal(twin.similarity, mixing.similarity)
    assert not LevelMixing("random", 3, 1, 3).state_dict()
    with pytest.raises(ValueError, match="mixing"):
        LevelMixing("none", 3, 1, 3)
