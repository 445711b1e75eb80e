"""Intermediate layers of an open_clip vision tower as targets.

What leaves a transformer block is its residual stream, before any later norm: layer k is `hidden_states[k]` of
transformers, so 0 is what enters the first block and the last number what leaves the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from eegrecon.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from eegrecon.models.vision import ClipModel

POOLINGS = ("mean", "cls", "tokens")


class _ReachedError(Exception):
    """The layer has spoken: what lies behind it is not computed."""


class VisionLayer:
    """One layer of a CLIP model's vision tower, pooled over positions.

    Attributes:
        kind: "layer".
        shape: (width,) for the poolings mean and cls, (n_tokens, width) for tokens.
        pooling: mean: over the patches, class token left out; cls: the class token; tokens: all of them, class token
            first, maps of a convolutional tower row by row.

    Args:
        clip: The model.
        layer: A block's number (see the module's text) or the name of a module of the tower, such as "ln_pre" or
            "transformer.resblocks.3.mlp".
        pooling: One of `POOLINGS`.

    Raises:
        ConfigError: There is no such layer, or it has no class token for the pooling cls; lists what there is.
    """

    kind = "layer"

    def __init__(self, clip: ClipModel, layer: str, pooling: str) -> None:
        import torch

        self.clip, self.layer, self.pooling = clip, layer, pooling
        tower = clip.model.visual
        self._prefix = _prefix_tokens(tower)
        self._module, self._input, self._text = _find(tower, layer)
        size = tower.image_size
        height, width = (size, size) if isinstance(size, int) else size
        with torch.inference_mode():
            probe = self._embed(torch.zeros(1, 3, height, width))
        self.shape = tuple(probe.shape[1:])
        self.dim = int(probe[0].numel())

    def to(self, device: Any) -> VisionLayer:
        """Move the network; returns itself."""
        self.clip.to(device)
        return self

    def header(self) -> dict[str, Any]:
        """Say what the numbers are, for a target store."""
        pooled = {"mean": "mean over the patches", "cls": "class token", "tokens": "all tokens"}[self.pooling]
        return {**self.clip.header(), "layer": f"{self._text}, {pooled}", "dim": self.dim, "scaling_factor": None}

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """The layer for pictures; float32 ``(n, *shape)``."""
        import torch

        pixels = torch.stack([self.clip.preprocess(picture) for picture in pictures])
        with torch.inference_mode():
            return self._embed(pixels).float().cpu().numpy()

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        device = next(self.clip.model.parameters()).device
        with _capture(self._module, self._input) as caught, suppress(_ReachedError):
            self.clip.model.encode_image(pixels.to(device))
        if not caught:
            raise ConfigError(f"the layer {self.layer!r} of {self.clip.name} takes no part in embedding a picture.")
        return self._pool(_tokens_first(self.clip.model.visual, self._module, caught[0], len(pixels)))

    def _pool(self, value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 4:  # (n, width, h, w) of a convolutional tower
            value, prefix = value.flatten(2).transpose(1, 2), 0
        elif value.ndim == 3:
            prefix = self._prefix
        else:
            value, prefix = value.flatten(1)[:, None], 0
        if self.pooling == "cls":
            if not prefix:
                raise ConfigError(
                    f"the layer {self.layer!r} of {self.clip.name} has no class token: set the pooling to mean or "
                    "tokens."
                )
            return value[:, 0]
        return value[:, prefix:].mean(1) if self.pooling == "mean" else value


@contextmanager
def _capture(module: Any, entering: bool) -> Iterator[list[Any]]:
    """Catch what leaves (or enters) a module and stop there."""
    caught: list[Any] = []

    def leave(_: Any, __: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise _ReachedError

    def enter(_: Any, arguments: tuple[Any, ...]) -> None:
        caught.append(arguments[0])
        raise _ReachedError

    handle = module.register_forward_pre_hook(enter) if entering else module.register_forward_hook(leave)
    try:
        yield caught
    finally:
        handle.remove()


def _blocks(tower: Any) -> Any:
    """The tower's blocks in order: open_clip's own ViT, or a timm trunk (a transformer's blocks, else its stages)."""
    for path in ("transformer.resblocks", "trunk.blocks", "trunk.stages"):
        try:
            return path, tower.get_submodule(path)
        except AttributeError:
            continue
    return None, []


def _find(tower: Any, layer: str) -> tuple[Any, bool, str]:
    """The module of a layer, whether its input is meant, and how the header calls it."""
    path, blocks = _blocks(tower)
    if layer.lstrip("-").isdigit():
        number, count = int(layer), len(blocks)
        if not count or not 0 <= number <= count:
            there = f"{count} blocks, so a number from 0 to {count}" if count else "no numbered blocks, so a module"
            raise ConfigError(f"there is no layer {layer} in the vision tower: it has {there} can be named.")
        text = f"residual stream after {number} of {count} vision blocks ({path})"
        return (blocks[number - 1], False, text) if number else (blocks[0], True, text)
    names = [name for name, _ in tower.named_modules() if name]
    if layer not in names:
        import difflib

        near = difflib.get_close_matches(layer, names, n=3) or names[:3]
        raise ConfigError(
            f"there is no layer {layer!r} in the vision tower: give a block's number (0 to {len(blocks)}) or a "
            f"module's name, such as {', '.join(near)}."
        )
    return tower.get_submodule(layer), False, f"output of the vision module {layer}"


def _prefix_tokens(tower: Any) -> int:
    """How many tokens before the patches are no patch."""
    if hasattr(tower, "class_embedding"):  # open_clip's own ViT always has one
        return 1
    return int(getattr(getattr(tower, "trunk", None), "num_prefix_tokens", 0))


def _tokens_first(tower: Any, module: Any, value: torch.Tensor, batch: int) -> torch.Tensor:
    """Put the batch first: an old kind of open_clip tower runs its blocks as (n_tokens, n, width)."""
    transformer = getattr(tower, "transformer", None)
    inside = transformer is not None and any(
        module is item for item in transformer.modules() if item is not transformer
    )
    if value.ndim == 3 and inside and not getattr(transformer, "batch_first", True):
        return value.transpose(0, 1)
    if len(value) != batch:
        raise ConfigError(
            f"the layer gives an array of shape {tuple(value.shape)} for {batch} pictures: name one with a row a "
            "picture."
        )
    return value
