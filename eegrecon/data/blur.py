"""Blurred pictures: what a target model sees where the EEG is thought to carry less detail than the picture.

Two published habits. A Gaussian of a given sigma; and the blur levels of VisualEEGDecoding (AAAI 2026,
makeitperfect/VisualEEGDecoding@3cfff34 `blur_process/uniform_blur.ipynb`: kernels 1, 3, 9, …, 63 on pictures resized to
224 x 224) and of UBP (CVPR 2025, its default kernel 51), which name the kernel and let OpenCV choose the sigma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eegrecon.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

REACH = 4.0  # standard deviations on each side of a kernel that is given by its sigma
# OpenCV's fixed kernels for small sizes without a sigma (cv2.getGaussianKernel, measured with 5.0.0), in 1/256.
SMALL_KERNELS = {3: (64, 128, 64), 5: (16, 64, 96, 64, 16), 7: (8, 28, 56, 72, 56, 28, 8)} | {
    9: (4, 13, 30, 51, 60, 51, 30, 13, 4)
}


@dataclass(frozen=True)
class Blur:
    """One blur level.

    Attributes:
        sigma: Of the Gaussian, in pixels; 0: none.
        kernel: Width of OpenCV's kernel in pixels (odd), or None where `sigma` was given.
        size: Pictures are first resized to size x size (bicubic, as PIL does by default), or None: as they are.
    """

    sigma: float = 0.0
    kernel: int | None = None
    size: int | None = None

    @property
    def label(self) -> str:
        """What tells this level's store from its neighbours', such as `blur2.5` or `kernel15`."""
        return f"blur{self.sigma:g}" if self.kernel is None else f"kernel{self.kernel}"

    def header(self) -> dict[str, float | int | None] | None:
        """What a target store's header says; None where pictures pass as they are."""
        if not self.sigma and self.size is None:
            return None
        return {"gaussian_sigma_px": self.sigma, "kernel_px": self.kernel, "resized_to_px": self.size}

    def taps(self) -> np.ndarray:
        """The kernel, (2 r + 1,) float64, sum 1."""
        if self.kernel in SMALL_KERNELS:
            return np.array(SMALL_KERNELS[self.kernel]) / 256
        reach = math.ceil(REACH * self.sigma) if self.kernel is None else self.kernel // 2
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / self.sigma) ** 2)
        return np.asarray(taps / taps.sum())

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Blur one RGB picture; the picture continues beyond its edges mirrored, as in OpenCV's default."""
        from PIL import Image

        if self.size is not None:
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if not self.sigma:
            return picture
        from scipy.ndimage import correlate1d

        pixels, taps = np.asarray(picture, dtype=np.float32), self.taps()
        for axis in (0, 1):
            pixels = correlate1d(pixels, taps, axis=axis, mode="mirror")
        return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def blur_levels(value: Any, where: str) -> list[Blur]:
    """Read a config's blur: a sigma in pixels, `{kernel: 15, size: 224}`, or a list of these.

    Args:
        value: What the config holds.
        where: Its key, for the message.

    Raises:
        ConfigError: It is none of these, or lists a level twice.
    """
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    levels = [_level(item, where) for item in values]
    if not levels or len({level.label for level in levels}) != len(levels):
        raise ConfigError(f"{where} must name at least one blur level, each once, but it is {value!r}.")
    return levels


def _level(value: Any, where: str) -> Blur:
    if isinstance(value, Mapping) and "kernel" in value and set(value) <= {"kernel", "size"}:
        kernel, size = value["kernel"], value.get("size")
        if _whole(kernel) and kernel % 2 == 1 and (size is None or _whole(size)):
            # A kernel of one pixel changes nothing; OpenCV's sigma for the others: docs of cv2.getGaussianKernel.
            return Blur(0.3 * ((kernel - 1) * 0.5 - 1) + 0.8 if kernel > 1 else 0.0, kernel, size)
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return Blur(float(value))
    raise ConfigError(
        f"{where} must be a Gaussian's sigma in pixels (0: none), {{kernel: odd width in pixels, size: pixels}}, or a "
        f"list of these, but it holds {value!r}."
    )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
