"""Features of pictures, in batches, from whichever network the caller brings (metrics never load networks)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PictureNetwork = Callable[[Sequence[Any]], Tensor]


def picture_features(network: PictureNetwork, pictures: Sequence[Any], batch_size: int = 64) -> Tensor:
    """Run a network over pictures without gradient.

    Args:
        network: Takes a list of b PIL pictures, gives (b, d).
        pictures: n PIL pictures.
        batch_size: How many at a time.

    Returns:
        (n, d) float32 on the CPU.

    Raises:
        ValueError: No pictures.
    """
    if not pictures:
        raise ValueError("picture_features needs at least one picture")
    with torch.inference_mode():
        batches = [network(pictures[i : i + batch_size]) for i in range(0, len(pictures), batch_size)]
    return torch.cat([batch.float().cpu() for batch in batches]).clone()


def picture_tensor(pictures: Sequence[Any], size: int) -> Tensor:
    """Stack PIL pictures as (n, 3, size, size) float32 in [0, 1]; others than `size` are resized bilinearly.

    PIL's bilinear filter widens with the reduction, so seen pictures that are larger do not alias.
    """
    from PIL import Image

    arrays = []
    for picture in pictures:
        picture = picture.convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        arrays.append(np.asarray(picture, dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
