"""Pixel metrics between reconstructions and seen pictures: PixCorr and SSIM, one score per picture."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import conv2d

# skimage.color.rgb2gray (ITU-R BT.709 luma), which the published scores use
GREY_WEIGHTS = (0.2125, 0.7154, 0.0721)
SIGMA, WINDOW = 1.5, 11  # window: 2 · round(3.5 · sigma) + 1, skimage's truncation


def pixcorr(pred: Float[Tensor, ...], true: Float[Tensor, ...]) -> Float64[Tensor, " n"]:
    """Pearson correlation of all RGB values of a reconstruction and its seen picture.

    facts/atm.md section 6 (MindEye's PixCorr); resizing is the caller's business and part of the protocol.

    Args:
        pred: (n, 3, h, w) in [0, 1].
        true: (n, 3, h, w) in [0, 1], same order.

    Returns:
        (n,) float64 in [-1, 1]; 0 where either picture is one flat colour value.

    Raises:
        ValueError: Shapes differ.
    """
    _check(pred, true)
    first, second = (pictures.double().flatten(1) for pictures in (pred, true))
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    norms = first.norm(dim=1) * second.norm(dim=1)
    flat = norms <= 1e-12
    return torch.where(flat, 0.0, (first * second).sum(1) / norms.masked_fill(flat, 1.0))


def ssim(pred: Float[Tensor, ...], true: Float[Tensor, ...]) -> Float64[Tensor, " n"]:
    """Structural similarity of the grey pictures.

    Wang et al. 2004 with Gaussian windows: sigma 1.5, 11×11, population covariance, data range 1. Equal to skimage's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)` on
    `rgb2gray` pictures, which the published scores use (facts/atm.md section 6).

    Args:
        pred: (n, 3, h, w) in [0, 1]; h and w at least 11.
        true: (n, 3, h, w) in [0, 1], same order.

    Returns:
        (n,) float64, 1 for equal pictures.

    Raises:
        ValueError: Shapes differ or the pictures are smaller than the window.
    """
    _check(pred, true)
    if min(pred.shape[2:]) < WINDOW:
        raise ValueError(f"ssim needs pictures of at least {WINDOW}×{WINDOW}, got {pred.shape[2]}×{pred.shape[3]}")
    first, second = _grey(pred), _grey(true)
    moments = torch.cat([first, second, first * first, second * second, first * second], dim=1)
    mean_1, mean_2, square_1, square_2, product = _blur(moments).unbind(1)
    variance_1, variance_2 = square_1 - mean_1**2, square_2 - mean_2**2
    covariance = product - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2  # (K1 · data range)², (K2 · data range)² of the paper
    similarity = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2)
    )
    return similarity.mean((1, 2))


def _grey(pictures: Float[Tensor, "n 3 h w"]) -> Float64[Tensor, "n 1 h w"]:
    weights = torch.tensor(GREY_WEIGHTS, dtype=torch.float64, device=pictures.device).view(1, 3, 1, 1)
    return (pictures.double() * weights).sum(1, keepdim=True)


def _blur(maps: Float64[Tensor, "n maps h w"]) -> Float64[Tensor, "n maps h-10 w-10"]:
    # Separable Gaussian without padding: skimage pads, but then drops exactly the pixels that padding reaches.
    # (torchmetrics 1.9's functional pads and keeps other pixels: up to 0.03 off on small pictures.)
    n_maps = maps.shape[1]
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=maps.device) - WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel = (kernel / kernel.sum()).expand(n_maps, 1, 1, WINDOW)
    return conv2d(conv2d(maps, kernel, groups=n_maps), kernel.transpose(2, 3), groups=n_maps)


def _check(pred: Tensor, true: Tensor) -> None:
    if pred.shape != true.shape or pred.ndim != 4 or pred.shape[1] != 3:
        raise ValueError(f"pictures must both be (n, 3, h, w), got {tuple(pred.shape)} and {tuple(true.shape)}")
