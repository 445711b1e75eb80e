"""Networks that score pictures: a judge the generator never met, and the space it was conditioned in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eegrecon.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from eegrecon.models.vision import ClipModel

PictureNetwork = Callable[[Sequence["Image.Image"]], "Tensor"]
EFFLITE2_SIZE = 260  # pixels, what EfficientNet-Lite2 was trained at (timm's tf_efficientnet_lite2)


def load_judge(name: str) -> PictureNetwork:
    """Load a judge by its name in the config: "efflite2", pooled features (b, 1280) of EfficientNet-Lite2.

    The pocket brain reads Lite1 and the pocket CLIP stands on Lite0, so Lite2 has met neither the conditioning nor the
    simulated signal.

    Raises:
        ConfigError: Unknown name.
    """
    if name != "efflite2":
        raise ConfigError(f"judge is {name!r}; choose one of efflite2.")
    import torch

    from eegrecon.models.packaged import efficientnet_lite, efflite_pixels

    network = efficientnet_lite(2).to(memory_format=torch.channels_last)
    return lambda pictures: network(efflite_pixels(pictures, EFFLITE2_SIZE))


def load_target_space(interface: Mapping[str, Any]) -> PictureNetwork:
    """Load the image model that made a target store, so that pictures can be compared in conditioning space.

    Args:
        interface: The store's `model` and `weights_tag`.

    Raises:
        ArtifactError: The pocket CLIP on this machine has other weights than the store was made with.
        DataError: The model's weights are not on this machine.
    """
    import torch

    model = load_clip_space(interface)
    return lambda pictures: torch.from_numpy(model.encode(pictures))


def load_clip_space(interface: Mapping[str, Any]) -> ClipModel:
    """Load the CLIP model, both towers, that made a target store.

    Args:
        interface: The store's `model` and `weights_tag`.

    Raises:
        ArtifactError: The pocket CLIP on this machine has other weights than the store was made with.
        DataError: The model's weights are not on this machine.
    """
    from eegrecon.models.vision import load_open_clip, load_pocket_clip

    name, tag = interface["model"], interface["weights_tag"]
    model = load_pocket_clip() if name == "pocket_clip" else load_open_clip(name, tag)
    if model.weights_tag != tag:
        raise ArtifactError(
            f"the targets were made with {name} weights {tag}, but this machine has {model.weights_tag}; "
            "run `eegrecon extract-targets … --overwrite` and train again."
        )
    return model
