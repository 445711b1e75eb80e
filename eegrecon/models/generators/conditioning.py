"""Whether a generator was made for the embeddings it is to be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mismatches(generator: Any, interface: Mapping[str, Any]) -> list[str]:
    """What a generator's conditioning and a target space disagree in, one phrase each.

    Args:
        generator: Has `dim` and `conditioning` (keys as in a target store's interface, {} if it does not say).
        interface: The target space, as far as it is known.
    """
    says = {"dim": generator.dim, **generator.conditioning}
    return [
        f"{name} is {says[name]!r} in the generator and {interface[name]!r} in the target"
        for name in ("model", "weights_tag", "dim", "normalised")
        if name in says and name in interface and says[name] != interface[name]
    ]
