import numpy as np
import pytest
import torch

from eegrecon.metrics.functional.pixels import pixcorr, ssim


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 6, 6, generator=generator), size=48, mode="bilinear")
    return smooth, (smooth + 0.2 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def test_pixcorr_equals_numpy(pictures):
    true, pred = pictures
    expected = [np.corrcoef(p.numpy().ravel(), t.numpy().ravel())[0, 1] for p, t in zip(pred, true, strict=True)]
    np.testing.assert_allclose(pixcorr(pred, true), expected, atol=1e-10)


def test_ssim_equals_skimage(pictures):
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity

    true, pred = (x.double().permute(0, 2, 3, 1).numpy() for x in pictures)
    expected = [
        structural_similarity(
            rgb2gray(p), rgb2gray(t), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
        for p, t in zip(pred, true, strict=True)
    ]
    np.testing.assert_allclose(ssim(pictures[1], pictures[0]), expected, atol=1e-6)


@pytest.mark.parametrize("metric", [pixcorr, ssim])
def test_perfect_is_one_and_noise_is_chance(metric, pictures):
    true = pictures[0]
    assert metric(true, true).tolist() == pytest.approx([1.0] * 4)
    noise = torch.rand(200, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).unbind(1)
    assert abs(metric(*noise).mean().item()) < 0.02


def test_a_flat_picture_correlates_zero():
    flat = torch.full((1, 3, 16, 16), 0.4)
    assert pixcorr(flat, torch.rand(1, 3, 16, 16)).tolist() == [0.0]


@pytest.mark.parametrize("metric", [pixcorr, ssim])
def test_shapes_that_differ_are_refused(metric):
    with pytest.raises(ValueError, match="must both be"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 17, 16))
