"""The vision towers whose tokens captioners read, as makers of target stores: what a projector learns to imitate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from eegrecon.errors import DataError
from eegrecon.models.captioners.git import POCKET_FILE, POCKET_TOKENS, POCKET_WIDTH, revision, short_name

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image


class GitTower:
    """The vision tower of a captioner: pictures to its last hidden state.

    Attributes:
        kind: "layer", as a target store calls it.
        shape: (n_tokens, width) of one picture.
        dim: Their product.

    Args:
        network: Pixels (b, 3, h, w) to tokens (b, n_tokens, width).
        pixels: Pictures to those pixels.
        shape: See above.
        model: What the store calls the captioner; must be the captioner's own name.
        weights_tag: Likewise.
        transform: What happens to a picture first, in words.
        layer: What the tokens are, in words.
    """

    kind = "layer"

    def __init__(
        self,
        network: torch.nn.Module,
        pixels: Callable[[Sequence[Image.Image]], torch.Tensor],
        shape: tuple[int, int],
        *,
        model: str,
        weights_tag: str,
        transform: str,
        layer: str,
    ) -> None:
        self.network, self.pixels, self.shape = network.eval().requires_grad_(False), pixels, shape
        self.dim = shape[0] * shape[1]
        self._header = {
            "model": model,
            "weights_tag": weights_tag,
            "weights_sha256": "",
            "layer": layer,
            "transform": transform,
            "scaling_factor": None,
        }

    def header(self) -> dict[str, Any]:
        """Say what the numbers are, for a target store."""
        return {**self._header, "dim": self.dim}

    def to(self, device: Any) -> GitTower:
        """Move the network; returns itself."""
        self.network.to(device)
        return self

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Visual tokens of pictures; float32 (n, n_tokens, width)."""
        import torch

        device = next(self.network.parameters()).device
        with torch.inference_mode():
            return self.network(self.pixels(pictures).to(device)).float().cpu().numpy()


def load_tower(name: str = "pocket") -> GitTower:
    """Load the vision tower of a captioner from this machine; nothing is downloaded.

    Args:
        name: As `load_git` takes it: "pocket", a fetched repository such as "microsoft/git-large-coco", or a folder.

    Raises:
        DataError: The weights are not on this machine, or are not a GIT's.
    """
    return _pocket_tower() if name == "pocket" else _git_tower(name)


def four_quarters(maps: torch.Tensor) -> torch.Tensor:
    """Turn maps (b, width, h, w) into tokens (b, 5, width): the mean of all, then of its quarters by row."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    quarters = adaptive_avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
    return torch.cat([maps.mean((2, 3))[:, None], quarters], dim=1)


def pocket_network() -> torch.nn.Module:
    """The pocket captioner's tower: EfficientNet-Lite0 up to its last map, as five tokens."""
    import torch

    from eegrecon.models.packaged import efficientnet_lite

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = efficientnet_lite(0).to(memory_format=torch.channels_last)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return four_quarters(self.trunk.forward_features(pixels))  # type: ignore[operator]

    return Tokens()


def _pocket_tower() -> GitTower:
    from functools import partial

    from eegrecon.artifacts import sha256_file
    from eegrecon.models.packaged import efflite_pixels
    from eegrecon.models.vision import POCKET_SIZE

    if not POCKET_FILE.is_file():
        raise DataError(
            f"the pocket captioner is missing: {POCKET_FILE}; reinstall eegrecon or run `make pocket-weights`."
        )
    return GitTower(
        pocket_network(),
        partial(efflite_pixels, size=POCKET_SIZE),
        (POCKET_TOKENS, POCKET_WIDTH),
        model="git_pocket",
        weights_tag=f"pocket-{sha256_file(POCKET_FILE)[:8]}",
        transform=f"EfficientNet-Lite's, {POCKET_SIZE} px",
        layer="EfficientNet-Lite0's last map: mean, then its four quarters",
    )


def _git_tower(name: str) -> GitTower:
    import torch
    from transformers import AutoImageProcessor

    from eegrecon.models.captioners.git import load_git_model

    model, _ = load_git_model(name)
    try:
        processor = AutoImageProcessor.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the captioner {name!r} has no preprocessor_config.json on this machine; fetch it with "
            f"`hf download {name}`."
        ) from error

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = model.git.image_encoder

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.tower(pixels).last_hidden_state

    def pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
        rgb = [picture.convert("RGB") for picture in pictures]
        return processor(images=rgb, return_tensors="pt").pixel_values

    return GitTower(
        LastHiddenState(),
        pixels,
        (model.git.encoder.layer[0].attention.self.image_patch_tokens, model.config.vision_config.hidden_size),
        model=short_name(name),
        weights_tag=revision(name),
        transform="transformers' image processor of the checkpoint",
        layer="last hidden state of GIT's vision tower, all tokens",
    )
