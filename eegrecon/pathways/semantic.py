"""The semantic pathway of a run: where its captions come from, and the captions of its draws."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from eegrecon.artifacts import input_record, read_manifest, sha256_file
from eegrecon.config import SemanticConfig
from eegrecon.data.images import ImageSet
from eegrecon.data.layout import projector_dir
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.models.captioners.git import weight_file
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

    @property
    def inputs(self) -> dict[str, dict[str, str]]:
        """Lineage entries: the projector, and the captioner's weights where they are one file."""
        if self.projector is None:
            return {}
        weights = weight_file(self.plan.captioner)
        found = {"projector": input_record(self.projector)}
        if weights is not None and weights.is_file():
            found["captioner"] = {"path": str(weights), "manifest_sha256": sha256_file(weights)}
        return found

    def check_held_out(self, split: Mapping[str, Any]) -> None:
        """Refuse a projector that learnt from pictures which this run holds out.

        Args:
            split: `data.split` of the run's manifests.

        Raises:
            ArtifactError: It names both splits.
        """
        if self.projector is None:
            return
        there = read_manifest(self.projector, fix="`eegrecon train-projector`").data.get("split", {})
        if there.get("sha256", {}).get("val") != split["sha256"]["val"]:
            how = [
                f"{one.get('val_concepts')} concepts of split_seed {one.get('split_seed')}" for one in (there, split)
            ]
            raise ArtifactError(
                f"The projector {self.projector} holds out {how[0]}, but this run {how[1]}: captions of this run's "
                "validation pictures would come from a projector that was trained on them; train one with this "
                "data.split under another `name`."
            )

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


def words_of(plan: SemanticConfig, set_root: Path, held_out: Collection[int] = ()) -> Words | None:
    """Where a config's captions come from; None: it has none.

    Args:
        plan: The config's block.
        set_root: The set's folder, with its pictures' names and its projectors.
        held_out: Concepts whose names retrieval must do without, as it must without those of test concepts.

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
    return Words(plan, names=tuple(training_names(ImageSet.from_root(set_root), held_out)))
