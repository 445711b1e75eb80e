"""Whether a generator was made for the embeddings it is to be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = ("model", "weights_tag", "kind", "layer", "fusion", "dim", "normalised")
# What adapters take that name a CLIP and no more: its image embeddings (`image_embeds`, behind the last projection).
IMAGE_EMBEDS: dict[str, Any] = {"kind": "image", "layer": "final", "fusion": None}


def mismatches(generator: Any, interface: Mapping[str, Any]) -> list[str]:
    """What a generator's conditioning and a target space disagree in, one phrase each.

    An intermediate layer, or the texts of the same CLIP, may have the width of its image embeddings: where the
    generator names a model, it must be this layer of it.

    Args:
        generator: Has `dim` and `conditioning` (keys as in a target store's interface, {} if it does not say).
        interface: The target space, as far as it is known.
    """
    own = generator.conditioning
    says = {"dim": generator.dim, **(IMAGE_EMBEDS if "model" in own else {}), **own}
    says, there = _comparable(says), _comparable(interface)
    return [
        f"{name} is {says[name]!r} in the generator and {there[name]!r} in the target"
        for name in KEYS
        if name in says and name in there and says[name] != there[name]
    ]


def _comparable(space: Mapping[str, Any]) -> dict[str, Any]:
    """Layers without what is said of the vectors' length ("final, L2-normalised in the file"), parts by their names."""
    found = {name: value for name, value in space.items() if value is not None or name == "fusion"}
    if "layer" in found:
        layer = str(found["layer"]).partition(",")[0]
        found["layer"] = "final" if layer == "image_embeds" else layer
    if found.get("fusion"):
        found["fusion"] = [part["name"] for part in found["fusion"]]
    return found
