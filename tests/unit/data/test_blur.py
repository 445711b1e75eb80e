import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import gaussian_blur

from eegrecon.data.blur import Blur, blur_levels
from eegrecon.errors import ConfigError

PIXELS = np.random.default_rng(0).integers(0, 256, size=(60, 48, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def torchvisions(picture, width, sigma):
    """The same Gaussian by another library, on floats, mirrored at the edges."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    return gaussian_blur(pixels, [width, width], [sigma, sigma]).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5, 5.0])
def test_a_sigma_is_a_gaussian(sigma):
    ours = np.asarray(Blur(sigma)(PICTURE), dtype=float)
    assert np.abs(ours - torchvisions(PICTURE, 2 * int(np.ceil(4 * sigma)) + 1, sigma)).max() <= 0.5 + 1e-3
    assert np.abs(ours - PIXELS).max() > 5


@pytest.mark.parametrize(("kernel", "sigma"), [(11, 2.0), (15, 2.6), (27, 4.4)])
def test_a_kernel_has_opencvs_sigma_and_width(kernel, sigma):
    # sigma = 0.3 ((k - 1) / 2 - 1) + 0.8 (documentation of cv2.getGaussianKernel), written out
    blur = Blur.__call__(blur_levels({"kernel": kernel, "size": 40}, "blur")[0], PICTURE)
    resized = PICTURE.resize((40, 40))
    assert blur.size == (40, 40)
    assert np.abs(np.asarray(blur, dtype=float) - torchvisions(resized, kernel, sigma)).max() <= 0.5 + 1e-3


def test_small_kernels_are_opencvs_fixed_ones():
    # cv2.getGaussianKernel(3, 0) is [.25, .5, .25], not the Gaussian of its own formula
    row = np.zeros((1, 9, 3), np.uint8)
    row[0, 4] = 200
    blurred = np.asarray(blur_levels({"kernel": 3}, "b")[0](Image.fromarray(np.repeat(row, 9, axis=0))))
    assert blurred[4, :, 0].tolist() == [0, 0, 0, 50, 100, 50, 0, 0, 0]
    assert all(np.isclose(Blur(1.0, k).taps().sum(), 1) for k in (5, 7, 9, 11))


def test_none_changes_nothing_and_says_nothing():
    for value in (0, {"kernel": 1}):
        (level,) = blur_levels(value, "blur")
        assert np.array_equal(np.asarray(level(PICTURE)), PIXELS)
        assert level.header() is None
    assert Blur(2.5).header() == {"gaussian_sigma_px": 2.5, "kernel_px": None, "resized_to_px": None}


def test_levels_are_read_and_named():
    assert [level.label for level in blur_levels([0, 2.5, {"kernel": 15, "size": 224}], "b")] == [
        "blur0", "blur2.5", "kernel15",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [-1, "2", True, None, [], [1, 1.0], {"kernel": 4}, {"kernel": 3, "sigma": 1}, [[1]]])
def test_what_is_no_level_is_refused(value):
    with pytest.raises(ConfigError, match=r"targets\.clip\.blur must"):
        blur_levels(value, "targets.clip.blur")
