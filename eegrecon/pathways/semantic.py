"""The semantic pathway of a run: where its captions come from, and the captions of its draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from eegrecon.config import SemanticConfig
from eegrecon.data.images import ImageSet
from eegrecon.data.layout import projector_dir
from eegrecon.errors import ConfigError
from eegrecon.pathways.captions import captions_of, training_names


@dataclass(frozen=True)
class Words:
    """Where captions come from.

    Attributes:
        plan: The config's block.
        projector: The directory of the source captions.
        names: What the source retrieval chooses from.
    """

    plan: SemanticConfig
    projector: Path | None = None
    names: tuple[str, ...] = ()

    def of(self, image_embeds: Tensor, interface: Mapping[str, Any], device: Any = "cpu") -> list[list[str]]:
        """Captions of image embeddings (n, draws, dim) in the space `interface` describes: n lists, one a draw.

        Raises:
            ArtifactError: The projector is of another space or captioner, or unfinished.
            DataError: Weights are not on this machine.
        """
        n, draws = image_embeds.shape[:2]
        more: dict[str, Any] = {"names": self.names}
        if self.plan.source == "captions":
            more = {"projector": self.projector, "captioner": self.plan.captioner, "num_beams": self.plan.num_beams}
        rows = image_embeds.flatten(0, 1)
        found = captions_of(rows, interface, source=self.plan.source, device=str(device), **more)
        return [found[start : start + draws] for start in range(0, n * draws, draws)]


def words_of(plan: SemanticConfig, set_root: Path) -> Words | None:
    """Where a config's captions come from; None: it has none.

    Args:
        plan: The config's block.
        set_root: The set's folder, with its pictures' names and its projectors.

    Raises:
        ConfigError: The source captions names no projector, or another source names one.
    """
    if (plan.source == "captions") != bool(plan.projector):
        raise ConfigError(
            f"pathways.semantic.source is {plan.source!r} and pathways.semantic.projector {plan.projector!r}: the "
            "source captions, and no other, needs the name of a projector that `eegrecon train-projector` has made."
        )
    if not plan.source:
        return None
    if plan.source == "captions":
        return Words(plan, projector_dir(set_root, plan.projector))
    return Words(plan, names=tuple(training_names(ImageSet.from_root(set_root))))
