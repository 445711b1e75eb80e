"""Several target stores read as one vector, and the alternatives ("levels") of which training rows see one or a mix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from eegrecon.data.images import ImageSet
from eegrecon.data.targets import TargetStore
from eegrecon.errors import DataError

FusionPart = tuple[Path, bool]  # a store's folder, and whether its flattened rows are divided by their norm


class FusedTargets:
    """The rows of several stores, flattened and put end to end; reads like a `TargetStore` of vectors.

    Attributes:
        path, name, header, kind: Of the first store, but the name lists all (`clip+vae`).
        shape, dim: Of the fused vector.

    Args:
        first: The image target.
        more: What is appended, each with whether its flattened rows are divided by their norm.
    """

    def __init__(self, first: TargetStore, more: Sequence[tuple[TargetStore, bool]] = ()) -> None:
        self.first, self.more = first, list(more)
        self.path, self.header, self.kind = first.path, first.header, first.kind
        self.name = "+".join([first.name, *(store.name for store, _ in self.more)])
        self.dim = first.dim + sum(store.dim for store, _ in self.more)
        self.shape = (self.dim,)

    def interface(self) -> dict[str, Any]:
        """As `TargetStore.interface`; with several stores also `fusion`, what each of the appended ones is."""
        own = self.first.interface()
        if not self.more:
            return own
        parts = [{**store.interface(), "normalised": by_norm} for store, by_norm in self.more]
        return {**own, "name": self.name, "dim": self.dim, "fusion": parts}

    def rows(self, image_index: np.ndarray) -> np.ndarray:
        """Fused targets of these pictures, (n, dim) float32, in the order asked for.

        Raises:
            DataError: As `TargetStore.rows`.
        """
        n = len(image_index)
        parts = [self.first.rows(image_index).reshape(n, -1)]
        for store, by_norm in self.more:
            rows = store.rows(image_index).reshape(n, -1)
            if by_norm:
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            parts.append(rows)
        return np.concatenate(parts, axis=1)


def open_targets(
    target_dirs: Mapping[str, Path],
    images: ImageSet,
    l2_normalise: Sequence[str],
    fusion: Sequence[FusionPart],
    level_dirs: Sequence[Path],
) -> tuple[dict[str, TargetStore], list[TargetStore]]:
    """Open every target; "image" with what is fused to it, as one vector, and its levels alike.

    Args:
        target_dirs: Key in the batch to store.
        images: The set's pictures.
        l2_normalise: Keys whose vectors are divided by their norm ("image": those of the levels, too).
        fusion: What is appended to "image" and to every level.
        level_dirs: Stores that stand in for "image" in training.

    Returns:
        Targets by key, and the levels.

    Raises:
        DataError: A store is missing or broken, or a level has another shape than "image".
    """
    stores = {key: TargetStore(path, images, l2_normalise=key in l2_normalise) for key, path in target_dirs.items()}
    if "image" not in stores:
        return stores, []
    more = [(TargetStore(path, images), by_norm) for path, by_norm in fusion]
    levels = [TargetStore(path, images, l2_normalise="image" in l2_normalise) for path in level_dirs]
    for level in levels:
        if level.shape != stores["image"].shape:
            raise DataError(
                f"The level {level.name!r} in {level.path} has targets of shape {level.shape}, but the target "
                f"{stores['image'].name!r} has {stores['image'].shape}: name levels of one shape."
            )

    def fused(store: TargetStore) -> TargetStore:
        vectors = len(store.shape) == 1 and not more
        return store if vectors else cast(TargetStore, FusedTargets(store, more))  # it reads like one

    stores["image"] = fused(stores["image"])
    return stores, [fused(level) for level in levels]
