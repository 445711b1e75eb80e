"""The pathways of a run put together: from EEG and image embeddings to what the generator is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eegrecon.artifacts import input_record
from eegrecon.config import PathwaysConfig
from eegrecon.data.picture_rows import PictureInputs, check_finite
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.pathways.low_level import FOLDERS, LatentSource, check_latents, open_latents
from eegrecon.pathways.semantic import Words

BESIDE = ("low_level",)  # folders of a run that some compositions need beside encoder and prior
# What both stages must have met alike: one trial fits either, and what one holds out did not train the other.
SAME_DATA = ("set", "subjects", "channels", "window", "n_times", "sfreq", "unit", "images_sha256", "split")


def check_pathways(plan: PathwaysConfig) -> None:
    """Refuse a composition of nothing.

    Raises:
        ConfigError: No pathway is on.
    """
    if not (plan.prior or plan.low_level or plan.semantic.source):
        raise ConfigError(
            "pathways turns everything off, so pictures would be of nothing: set pathways.prior=true, or name a "
            "pathways.low_level or pathways.semantic.source."
        )


def stages_of(plan: PathwaysConfig) -> list[str]:
    """Those of `BESIDE` that a composition needs."""
    return [FOLDERS["low_level"]] if plan.low_level == "low_level" else []


class Pathways:
    """The pathways beside the prior, loaded.

    Attributes:
        plan: Which are on.
        latents: What predicts latents, or None.
        words: Where captions come from, or None.
    """

    def __init__(
        self,
        plan: PathwaysConfig,
        home: Path,
        data: Mapping[str, Any],
        interface: Mapping[str, Any],
        words: Words | None = None,
    ) -> None:
        """Open what the plan names.

        Args:
            plan: The config's block.
            home: The run, or a saved pipeline.
            data: `data` of the encoder's manifest, with which the others must agree.
            interface: The space of the prior's image embeddings.
            words: From `pathways.semantic.words_of`.

        Raises:
            ConfigError: Nothing is on.
            ArtifactError: A stage is missing, unfinished or was trained on other data.
        """
        check_pathways(plan)
        self.plan, self.home, self.words = plan, Path(home), words
        self._interface, self._device = dict(interface), "cpu"
        self.latents: LatentSource | None = None
        if plan.low_level:
            self.latents = open_latents(self.home, plan.low_level)
            _check_data(self.latents, data)

    @property
    def inputs(self) -> dict[str, dict[str, str]]:
        """Lineage entries of the stages beside encoder and prior."""
        found = {name: input_record(self.home / name) for name in stages_of(self.plan)}
        if self.words is not None:
            found |= self.words.inputs
        return found

    def check(self, generator: Any, base: str) -> None:
        """Refuse a generator that cannot take what these pathways give.

        Args:
            generator: Has `check`, `vae` and `size`.
            base: What it was loaded from.

        Raises:
            ArtifactError: The latents are of another VAE.
            ConfigError: It keeps no text encoder, or its strength leaves no step.
        """
        if self.latents is not None:
            check_latents(self.latents.interface, self.latents.directory, generator, base)
        generator.check(latents=self.latents is not None, captions=self.words is not None)

    def to(self, device: Any) -> Pathways:
        """Move the networks; returns itself."""
        self._device = device
        if self.latents is not None:
            self.latents.network.to(device)
        return self

    def decoded(self, eeg: Tensor, subject: Tensor, image_embeds: Tensor) -> PictureInputs:
        """What was decoded from EEG.

        Args:
            eeg: (n, n_chans, n_times) in the store's unit; only read where latents are predicted.
            subject: (n,) int.
            image_embeds: (n, draws, dim), the prior's.

        Raises:
            DataError: Embeddings that are not finite, whether they condition the picture or only its caption.
        """
        check_finite(image_embeds, "the prior's image embeddings")
        latents = None if self.latents is None else self.latents.predict(eeg, subject)
        return self._put_together(image_embeds, latents)

    def ceiling(self, image_embeds: Tensor, latents: Tensor | None) -> PictureInputs:
        """What the seen pictures themselves say, through the same pathways: the best this generator could be told.

        Args:
            image_embeds: (n, draws, dim) of the seen pictures.
            latents: (n, 4, h, w) of the seen pictures; None without a low-level pathway.
        """
        return self._put_together(image_embeds, latents if self.latents is not None else None)

    def _put_together(self, image_embeds: Tensor, latents: Tensor | None) -> PictureInputs:
        shown = image_embeds if self.plan.prior else torch.zeros_like(image_embeds)
        captions = None if self.words is None else self.words.of(image_embeds, self._interface, self._device)
        return PictureInputs(shown, latents, captions)


def _check_data(source: LatentSource, data: Mapping[str, Any]) -> None:
    there = source.manifest.data
    wrong = [
        f"{key} {_in_short(there.get(key))} there, {_in_short(data[key])} here"
        for key in SAME_DATA
        if key in data and there.get(key) != data[key]
    ]
    if wrong:
        raise ArtifactError(
            f"{source.directory} was trained on other data than the encoder beside it: {'; '.join(wrong)}; train both "
            "with one data block."
        )


def _in_short(value: Any) -> Any:
    """A split by how it was made; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    return " ".join(f"{key}={value[key]}" for key in ("protocol", "val_concepts", "split_seed") if key in value)
