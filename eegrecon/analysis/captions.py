"""Does a caption name the concept that was seen? Measured as retrieval among the names, so chance is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eegrecon.analysis.ranks import QueryRanks
from eegrecon.analysis.scoring import cosine_ranks

NAMED = "a picture of {}"


def caption_ranks(
    captions: Sequence[str],
    concepts: Sequence[str],
    *,
    image_index: Tensor,
    subject: Tensor,
    embed: Callable[[Sequence[str]], Tensor] | None = None,
) -> QueryRanks:
    """Where the seen concept's name comes among all that were seen, by similarity of its text to the caption.

    A caption may say "a picture of puppy" for a dog: exact words would call that wrong, a sentence encoder calls it
    near. `analysis.scoring.rank_metrics` turns the ranks into top-1 and top-5 with intervals, by chance 1 and 5 of N.

    Args:
        captions: n, one a query.
        concepts: n, the concept seen in each, underscores or spaces; the gallery is the distinct ones.
        image_index: (n,) the picture seen.
        subject: (n,).
        embed: Texts to (n, dim) embeddings; None: the packaged MiniLM, a network that met neither pictures nor EEG.

    Raises:
        ValueError: Lengths differ.
    """
    if not len(captions) == len(concepts) == len(image_index) == len(subject):
        raise ValueError(
            "captions, concepts, image_index and subject must have one entry a query, got "
            f"{len(captions)}, {len(concepts)}, {len(image_index)} and {len(subject)}"
        )
    if embed is None:
        from eegrecon.models.packaged import minilm_embeds

        embed = minilm_embeds
    names = sorted({concept.replace("_", " ") for concept in concepts})
    place = {name: number for number, name in enumerate(names)}
    target = torch.tensor([place[concept.replace("_", " ")] for concept in concepts])
    gallery = embed([NAMED.format(name) for name in names])
    return cosine_ranks(embed(list(captions)), gallery, target, image_index=image_index, subject=subject)
