"""CLIP models through open_clip's own interface: any published one, or the pocket CLIP that eegrecon ships.

The pocket CLIP is a real open_clip model: a timm EfficientNet-Lite0 image tower and a MiniLM text tower, both with the
weights their packages carry, and two linear heads trained by ``eegrecon pocket-weights``. Only the heads are ours.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import sha256_file
from eegrecon.errors import DataError
from eegrecon.models.packaged import (
    EFFLITE_MEAN,
    EFFLITE_STD,
    load_efficientnet_lite_weights,
    minilm_folder,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

POCKET_DIM = 256
POCKET_SIZE = 128  # pixels; the pocket pictures' own size, so nothing is resampled
HEADS = "heads.safetensors"
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def pocket_heads_file() -> Path:
    """Return the file of the trained projection heads that the package ships."""
    return Path(str(files("eegrecon"))) / "pocket" / "weights" / "clip" / HEADS


@dataclass
class ClipModel:
    """One CLIP model, ready to embed (eval mode).

    Attributes:
        model: open_clip model with ``encode_image`` and ``encode_text``.
        preprocess: open_clip's deterministic evaluation transform, PIL picture to ``(3, h, w)``.
        tokenizer: texts to token ids ``(n, context)``.
        name: architecture name.
        weights_tag: which weights.
        weights_sha256: of the weight file, or "" when open_clip fetched it by tag.
        dim: embedding size.
    """

    model: Any
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenizer: Callable[[Sequence[str]], torch.Tensor]
    name: str
    weights_tag: str
    weights_sha256: str
    dim: int

    kind = "image"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one embedding."""
        return (self.dim,)

    def header(self) -> dict[str, Any]:
        """Say what the embeddings are, for a target store."""
        return {
            "model": self.name,
            "weights_tag": self.weights_tag,
            "weights_sha256": self.weights_sha256,
            "layer": "final",
            "transform": "open_clip evaluation transform",
            "dim": self.dim,
            "scaling_factor": 1.0,
        }

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Embed pictures; float32 ``(n, dim)``, not L2-normalised."""
        import torch

        pixels = torch.stack([self.preprocess(picture) for picture in pictures])
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            return self.model.encode_image(pixels.to(device)).float().cpu().numpy()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; float32 ``(n, dim)``, not L2-normalised."""
        import torch

        device = next(self.model.parameters()).device
        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer(list(texts)).to(device)).float().cpu().numpy()


def pocket_clip_config() -> dict[str, Any]:
    """Return the open_clip configuration of the pocket CLIP; its text tower's path is this machine's."""
    text = str(minilm_folder())  # open_clip wants an absolute path, so the file is written at run time
    return {
        "model_cfg": {
            "embed_dim": POCKET_DIM,
            "vision_cfg": {
                "timm_model_name": "tf_efficientnet_lite0",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": POCKET_SIZE,
            },
            "text_cfg": {
                "hf_model_name": text,
                "hf_tokenizer_name": text,
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
                "context_length": 32,
            },
        },
        "preprocess_cfg": {
            "mean": [EFFLITE_MEAN] * 3,
            "std": [EFFLITE_STD] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def build_pocket_clip() -> tuple[Any, Any, Any]:
    """Build the pocket CLIP with its packaged towers and *untrained* heads; returns (model, preprocess, tokenizer)."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder, _quiet():
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(pocket_clip_config()))
        for name in TOKENIZER_FILES:  # open_clip looks for the tokenizer beside the configuration
            shutil.copy(minilm_folder() / name, folder)
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    load_efficientnet_lite_weights(model.visual.trunk, level=0)
    return model.eval().requires_grad_(False), preprocess, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep two libraries from warning about what is meant here: towers from packages, heads from elsewhere."""
    import logging

    from transformers.utils import logging as transformers_logging

    root, level = logging.getLogger(), transformers_logging.get_verbosity()
    before = root.level
    bars = transformers_logging.is_progress_bar_enabled()
    root.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        root.setLevel(before)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def heads_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a pocket CLIP that eegrecon trains, under open_clip's own names."""
    own = ("visual.head.", "text.proj.", "logit_scale")
    return {name: value for name, value in model.state_dict().items() if name.startswith(own)}


def load_pocket_clip(heads: str = "") -> ClipModel:
    """Load the pocket CLIP.

    Args:
        heads: file of projection heads; "" takes the shipped one.

    Raises:
        DataError: the heads are missing or are not this model's.
    """
    from safetensors.torch import load_file

    path = Path(heads) if heads else pocket_heads_file()
    if not path.is_file():
        raise DataError(f"the pocket CLIP's heads are missing: {path}; reinstall eegrecon or run `make pocket-weights`")
    model, preprocess, tokenizer = build_pocket_clip()
    tensors = {name: value.float() for name, value in load_file(path).items()}
    wanted = heads_of(model)
    if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in wanted.items()}:
        raise DataError(
            f"{path} holds {sorted(tensors)}, but the pocket CLIP's heads are {sorted(wanted)}; reinstall eegrecon"
        )
    model.load_state_dict(tensors, strict=False)
    sha256 = sha256_file(path)
    return ClipModel(model, preprocess, tokenizer, "pocket_clip", f"pocket-{sha256[:8]}", sha256, POCKET_DIM)


def load_open_clip(model: str = "ViT-H-14", pretrained: str = "laion2b_s32b_b79k") -> ClipModel:
    """Load a published open_clip model by architecture and weights tag (or a local weight file).

    Raises:
        DataError: the weights are not on this machine and cannot be fetched.
    """
    import open_clip

    try:
        network, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=pretrained)
    except Exception as error:
        raise DataError(
            f"open_clip cannot load {model} ({pretrained}): {str(error).splitlines()[0]}; "
            f"on a machine with network run `python -c \"import open_clip; open_clip.create_model('{model}', "
            f"pretrained='{pretrained}')\"` and copy its cache (~/.cache/huggingface), or give a local weight file "
            "as targets.<name>.model.args.pretrained"
        ) from error
    dim = int(open_clip.get_model_config(model)["embed_dim"])
    tokenizer = open_clip.get_tokenizer(model)
    return ClipModel(network.eval().requires_grad_(False), preprocess, tokenizer, model, pretrained, "", dim)
