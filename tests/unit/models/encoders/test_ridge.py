"""Ridge against the normal equations, and its two known points."""

import numpy as np
import pytest
import torch

from eegrecon.config import ENCODERS, Choice
from eegrecon.errors import ConfigError
from eegrecon.models.encoders.ridge import Ridge, fit_ridge, fit_ridge_in_blocks
from eegrecon.registry import resolve


def data(n, p, noise=0.0, dim=3):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=g) + 2
    w = torch.randn(p, dim, generator=g)
    return x, x @ w + 1 + noise * torch.randn(n, dim, generator=g)


@pytest.mark.parametrize(("n", "p"), [(12, 30), (40, 9)])
def test_equals_the_normal_equations(n, p):
    x, y = data(n, p, noise=0.5)
    fit = fit_ridge(x, y, val_x=x, score=lambda pred: 0.0, alphas=[0.7])
    xc, yc = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    penalty = 0.7 * float((xc @ xc.T if n <= p else xc.T @ xc).diagonal().mean())
    expected = torch.linalg.solve(xc.T @ xc + penalty * torch.eye(p, dtype=torch.float64), xc.T @ yc).T
    torch.testing.assert_close(fit.weight.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x.mean(0) @ fit.weight.T + fit.bias, y.mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("n", "p"), [(12, 30), (60, 9)])
def test_the_score_sees_what_the_weights_predict_and_chooses_alpha(n, p):
    x, y = data(n, p)
    seen = []

    def score(pred):
        seen.append(pred)
        return -float((pred - y).square().mean())

    fit = fit_ridge(x, y, val_x=x, score=score, alphas=[100.0, 1e-4, 1.0])
    assert fit.alpha == 1e-4  # noiseless: the least penalty fits best
    assert list(fit.scores) == [100.0, 1.0, 1e-4]
    torch.testing.assert_close(seen[-1], x @ fit.weight.T + fit.bias, atol=1e-3, rtol=1e-3)
    assert float((seen[-1] - y).abs().max()) < 0.05


@pytest.mark.parametrize("size", [1, 7, 40])
def test_blocks_give_what_all_rows_at_once_give(size):
    x, y = data(40, 9, noise=0.5)
    x = x * torch.linspace(0.1, 3, 9) + 50  # far from zero: sums of squares nearly cancel
    options = {"val_x": x[:15], "score": lambda pred: -float((pred - y[:15]).square().mean()), "alphas": [0.01, 0.3]}
    blocks = zip(x.split(size), y.split(size), strict=True)
    parts, whole = fit_ridge_in_blocks(blocks, **options), fit_ridge(x.double(), y.double(), **options | {
        "val_x": x[:15].double()})  # fmt: skip
    assert parts.alpha == whole.alpha
    torch.testing.assert_close(parts.weight.double(), whole.weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts.bias.double(), whole.bias, atol=1e-2, rtol=1e-4)
    assert parts.scores == pytest.approx(whole.scores, rel=1e-4)


def test_ties_keep_the_smoother_alpha():
    x, y = data(10, 20)
    assert fit_ridge(x, y, val_x=x, score=lambda pred: 1.0, alphas=[0.1, 10.0]).alpha == 10.0


def test_the_module_applies_the_fit():
    x, y = data(12, 30)
    fit = fit_ridge(x, y, val_x=x, score=lambda pred: 0.0, alphas=[0.1])
    net = Ridge(5, 6, 3)
    net.set_weights(fit.weight, fit.bias)
    out = net(x.view(12, 5, 6), torch.ones(12, dtype=torch.long))
    torch.testing.assert_close(out, x @ fit.weight.T + fit.bias, atol=1e-4, rtol=1e-4)


def test_bins_are_means_and_a_short_last_one_is_a_mean_of_what_is_there():
    torch.manual_seed(0)
    net, eeg = Ridge(2, 7, 3, samples_per_bin=3), torch.randn(4, 2, 7)
    by_hand = np.stack([eeg[:, :, a:b].double().numpy().mean(2) for a, b in ((0, 3), (3, 6), (6, 7))], axis=2)
    np.testing.assert_allclose(net.bins(eeg).numpy(), by_hand, atol=1e-6)
    weight, bias = (value.detach().double().numpy() for value in (net.linear.weight, net.linear.bias))
    assert weight.shape == (3, 6)
    expected = np.einsum("bct,dct->bd", by_hand, weight.reshape(3, 2, 3)) + bias
    np.testing.assert_allclose(net(eeg, torch.ones(4, dtype=torch.long)).detach().numpy(), expected, atol=1e-5)
    eeg = torch.randn(2, 2, 9)  # without a short one
    np.testing.assert_allclose(
        Ridge(2, 9, 3, samples_per_bin=3).bins(eeg).numpy(), eeg.numpy().reshape(2, 2, 3, 3).mean(3), atol=1e-6
    )


def test_the_state_says_how_many_samples_a_bin_has():
    first, second = Ridge(2, 10, 3, samples_per_bin=5), Ridge(2, 10, 3, samples_per_bin=7)  # both of two bins
    eeg, subject = torch.randn(4, 2, 10), torch.ones(4, dtype=torch.long)
    second.load_state_dict(first.state_dict(), strict=True)
    torch.testing.assert_close(first(eeg, subject), second(eeg, subject), atol=0, rtol=0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Ridge(2, 10, 3).load_state_dict(first.state_dict(), strict=True)


@pytest.mark.parametrize("size", [0, -1, 8, True])
def test_a_bin_is_a_whole_number_of_samples_of_a_trial(size):
    words = f"refused: samples_per_bin is {size!r}, expected a whole number from 1 to 7, the samples of a trial"
    with pytest.raises(ConfigError, match=words):
        resolve(ENCODERS, Choice("ridge", {"samples_per_bin": size}), n_chans=2, n_times=7, dim=3)
    assert Ridge(2, 7, 3, samples_per_bin=7).linear.in_features == 2


def test_bad_alphas_and_constant_inputs_are_refused():
    x, y = data(6, 4)
    with pytest.raises(ValueError, match="positive"):
        fit_ridge(x, y, val_x=x, score=lambda pred: 0.0, alphas=[0.0])
    with pytest.raises(ValueError, match="constant"):
        fit_ridge(torch.ones(6, 4), y, val_x=x, score=lambda pred: 0.0)
    with pytest.raises(ValueError, match="at least one row"):
        fit_ridge_in_blocks([], val_x=x, score=lambda pred: 0.0)
