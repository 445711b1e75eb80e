"""Scores of predicted latents: independent oracles, perfect and chance."""

import numpy as np
import pytest
import torch

from eegrecon.metrics.functional.latents import latent_scores


def data(n=300, shape=(4, 4, 4)):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(shape, generator=generator)
    return mean + torch.randn(n, *shape, generator=generator), mean, generator


def test_perfect_mean_and_chance():
    true, mean, generator = data()
    perfect = latent_scores(true, true, mean)
    assert perfect["latent_mse"] == perfect["latent_l1"] == 0
    for name in ("latent_skill", "latent_correlation", "latent_two_way", "latent_std_ratio"):
        assert perfect[name] == pytest.approx(1), name
    blank = latent_scores(mean.expand_as(true), true, mean)
    assert blank["latent_skill"] == pytest.approx(0, abs=1e-6)
    assert blank["latent_correlation"] == blank["latent_std_ratio"] == 0
    assert blank["latent_two_way"] == 0.5
    other = latent_scores(mean + torch.randn(true.shape, generator=generator), true, mean)
    assert abs(other["latent_correlation"]) < 0.02
    assert abs(other["latent_two_way"] - 0.5) < 0.04
    assert other["latent_skill"] == pytest.approx(-1, abs=0.05)  # an unrelated guess of full variance costs twice


def test_a_shrunken_truth_by_hand():
    true, mean, _ = data()
    half = latent_scores(mean + 0.5 * (true - mean), true, mean)
    assert half["latent_skill"] == pytest.approx(0.75)
    assert half["latent_std_ratio"] == pytest.approx(0.5)
    assert half["latent_correlation"] == pytest.approx(1)


def test_against_numpy():
    true, mean, generator = data(20)
    pred = true + torch.randn(true.shape, generator=generator)
    found = latent_scores(pred, true, mean)
    p, t = ((values - mean).double().flatten(1).numpy() for values in (pred, true))
    assert found["latent_mse"] == pytest.approx(((p - t) ** 2).mean())
    assert found["latent_l1"] == pytest.approx(np.abs(p - t).mean())
    assert found["latent_skill"] == pytest.approx(1 - ((p - t) ** 2).sum() / (t**2).sum())
    matrix = np.corrcoef(t, p)[:20, 20:]
    assert found["latent_correlation"] == pytest.approx(np.diag(matrix).mean())
    wins = [np.mean([matrix[i, j] < matrix[j, j] for i in range(20) if i != j]) for j in range(20)]
    assert found["latent_two_way"] == pytest.approx(np.mean(wins))


def test_what_cannot_be_scored():
    true, mean, _ = data(3)
    with pytest.raises(ValueError, match="two of one shape"):
        latent_scores(true[:, :2], true, mean)
    with pytest.raises(ValueError, match="two of one shape"):
        latent_scores(true[:1], true[:1], mean)
    with pytest.raises(ValueError, match="nothing to predict"):
        latent_scores(true, mean.expand_as(true), mean)
