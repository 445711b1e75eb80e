"""A scene: one drawing on a generated background, at its own place, size, tilt and light."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

BACKGROUNDS = ("plain", "gradient", "spot", "horizon", "texture", "stripes")


def _colour(rng: np.random.Generator, low: float = 0.25, high: float = 0.95) -> np.ndarray:
    """Draw one RGB colour in [0, 1]: any hue, from muted to strong."""
    import colorsys

    import numpy as np

    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.75), rng.uniform(low, high)), np.float32)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a background ``(size, size, 3)`` float32 in [0, 1]; its kind is one of :data:`BACKGROUNDS`."""
    import numpy as np
    from scipy.ndimage import zoom

    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    first, second = _colour(rng), _colour(rng)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    if kind == "plain":
        mix = np.zeros_like(x)
    elif kind == "gradient":
        mix = (along + 1.42) / 2.84
    elif kind == "spot":
        cx, cy = rng.uniform(-0.6, 0.6, 2)
        mix = np.clip(np.hypot(x - cx, y - cy) / rng.uniform(0.8, 1.6), 0, 1)
    elif kind == "horizon":
        level, slope = rng.uniform(-0.3, 0.6), rng.uniform(-0.15, 0.15)
        mix = 1 / (1 + np.exp(-(y - level - slope * x) * 25))
    elif kind == "texture":
        coarse = rng.random((rng.integers(3, 9),) * 2).astype(np.float32)
        mix = np.clip(zoom(coarse, size / len(coarse), order=1)[:size, :size], 0, 1)
    else:
        mix = 0.5 + 0.5 * np.sin(along * rng.uniform(4, 14))
    return first + (second - first) * mix.astype(np.float32)[..., None]


def scene(drawing: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    """Compose one picture.

    Args:
        drawing: RGBA drawing.
        rng: everything random about the scene comes from here, so a seed is a picture.
        size: side of the picture in pixels.

    Returns:
        An RGB picture ``(size, size)``; the drawing fills 60–95 % of its side and stays inside.
    """
    import numpy as np
    from PIL import Image

    canvas = background(rng, size)
    side = int(size * rng.uniform(0.6, 0.95))
    turned = drawing.resize((side, side), Image.Resampling.LANCZOS).rotate(
        rng.uniform(-18, 18), Image.Resampling.BICUBIC
    )
    room = size - side
    # Mostly central, as a photographer would frame it.
    left, top = (int(round(room * np.clip(rng.normal(0.5, 0.25), 0, 1))) for _ in range(2))
    layer = np.asarray(turned, np.float32) / 255
    alpha = layer[..., 3:]
    shade = canvas[top : top + side, left : left + side]
    light = 1 + rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, side, dtype=np.float32)[:, None, None]
    canvas[top : top + side, left : left + side] = shade * (1 - alpha) + layer[..., :3] * light * alpha
    canvas = np.clip(canvas * rng.uniform(0.85, 1.1), 0, 1)
    return Image.fromarray((canvas * 255 + 0.5).astype(np.uint8))
