"""Best of n draws, by a rule that cannot see the truth: how well a picture says what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from eegrecon.callbacks.reconstruction import picture_file
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.metrics.features import PictureNetwork, picture_features

CHOSEN, CHOSEN_CEILING = "chosen_draw", "chosen_draw_ceiling"  # in embeds/test.safetensors: (n,) int32
# What metrics.json says of each choice of `keep`.
RULES = {
    "all": "all draws, their scores averaged",
    "best": (
        "of each picture's draws the one that, embedded again by the target's own model, has the highest cosine to the "
        "embedding it was generated from (never to the seen picture's); the ceiling alike. The score in conditioning "
        "space is of the space that chose"
    ),
}


def check_keep(keep: str, draws: int) -> None:
    """Whether there is something to choose from.

    Raises:
        ConfigError: There is not.
    """
    if keep == "best" and draws < 2:
        raise ConfigError(f"keep is 'best' but draws is {draws}: set draws to 2 or more, or keep=all.")


def best_draws(folder: Path, ids: Sequence[str], conditions: Tensor, network: PictureNetwork) -> Tensor:
    """Which draw of each picture is most like its own condition.

    Args:
        folder: With the pictures of all draws.
        ids: n image ids.
        conditions: (n, draws, dim) what each picture was generated from.
        network: Pictures to embeddings in the space of the conditions.

    Returns:
        (n,) int32; the first of equals.

    Raises:
        ArtifactError: A picture cannot be read, or the network's embeddings are not of the conditions' space.
    """
    n, draws, dim = conditions.shape
    cosines = torch.empty(n, draws)
    for draw in range(draws):
        made = picture_features(
            network, [open_picture(folder / picture_file(image_id, draw)) for image_id in ids]
        ).float()
        if made.shape != (n, dim):
            raise ArtifactError(
                f"keep=best embeds pictures again, but the target's model gives {made.shape[-1]} numbers and the "
                f"pictures were made from {dim}: choose keep=all for this target."
            )
        cosines[:, draw] = cosine_similarity(made, conditions[:, draw].float(), dim=1)
    return cosines.argmax(dim=1).int()


def open_picture(path: Path) -> Any:
    """A PIL picture in RGB.

    Raises:
        ArtifactError: It cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise ArtifactError(f"the picture {path} cannot be read; make it again with --overwrite ({error}).") from error
