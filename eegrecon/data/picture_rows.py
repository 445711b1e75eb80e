"""What a picture is made from, and the rows that the generator gets of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eegrecon.data.batches import RowDataset
from eegrecon.errors import DataError


@dataclass(frozen=True)
class PictureInputs:
    """What the pathways say about n trials, for each of their draws.

    Attributes:
        image_embeds: (n, draws, dim), zero where no image embedding conditions the generator.
        latents: (n, 4, h, w) scaled latents that denoising starts from, the same for every draw; None: from noise.
        captions: n lists of as many prompts as there are draws; None: no words.
    """

    image_embeds: Tensor
    latents: Tensor | None = None
    captions: Sequence[Sequence[str]] | None = None

    @property
    def draws(self) -> int:
        """Pictures of each trial."""
        return int(self.image_embeds.shape[1])


def check_finite(values: Tensor, name: str) -> None:
    """Refuse numbers that are none.

    Args:
        values: (n, …), a row a trial.
        name: What they are, for messages.

    Raises:
        DataError: Names the first trial, counted from 0.
    """
    bad = (~values.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"{name} hold NaN or infinity in trial {bad[0]} ({len(bad)} of {len(values)} trials), expected finite "
            "numbers: is the EEG in the unit that was trained on?"
        )


def vocabulary(inputs: Sequence[PictureInputs]) -> list[str]:
    """Every prompt once, sorted: batches hold numbers, so rows name a prompt by its place in here."""
    return sorted({words for one in inputs for row in one.captions or () for words in row})


def picture_rows(inputs: PictureInputs, image_index: Tensor, words: Sequence[str] = ()) -> RowDataset:
    """What the generator is given: every draw a row of its own.

    Args:
        inputs: Of n trials.
        image_index: (n,).
        words: From `vocabulary`.

    Returns:
        image_embeds (n · draws, dim), image_index and draw (n · draws,), and where there are any latents
        (n · draws, 4, h, w) and caption (n · draws,), places in `words`.

    Raises:
        DataError: They differ in length.
    """
    n, draws = inputs.image_embeds.shape[:2]
    parts = {
        "an embedding": n,
        "latents": n if inputs.latents is None else len(inputs.latents),
        "a caption": n if inputs.captions is None else len(inputs.captions),
    }
    for what, length in parts.items():
        if length != len(image_index):
            raise DataError(f"The generator needs {what} of each of {len(image_index)} pictures, got {length}.")
    columns = {
        "image_embeds": inputs.image_embeds.float().cpu().flatten(0, 1),
        "image_index": image_index.long().cpu().repeat_interleave(draws),
        "draw": torch.arange(draws).repeat(n),
    }
    if inputs.latents is not None:
        columns["latents"] = inputs.latents.float().cpu().repeat_interleave(draws, dim=0)
    if inputs.captions is not None:
        place = {text: at for at, text in enumerate(words)}
        columns["caption"] = torch.tensor([place[text] for row in inputs.captions for text in row])
    return RowDataset(columns)
