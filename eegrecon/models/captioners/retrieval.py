"""The baseline of captions: the name of the nearest concept, by the text tower of the image embeddings' own space."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import normalize

from eegrecon.errors import ConfigError

PROMPT = "a picture of {}"  # what the pocket captioner and the pocket SDXL's text tower were trained on


class NameRetrieval:
    """Captions by nearest name: cosine between an image embedding and the texts "a picture of X".

    Attributes:
        names: The vocabulary, underscores spelled as spaces.

    Args:
        names: Concepts that may be named. Naming only the test set's own tells the answers: say so where it is done.
        encode_texts: Texts to (n, dim) embeddings, the text tower of the image embeddings' own model.

    Raises:
        ConfigError: There are no names.
    """

    def __init__(self, names: Sequence[str], encode_texts: Callable[[Sequence[str]], torch.Tensor]) -> None:
        self.names = sorted({name.replace("_", " ") for name in names})
        if not self.names:
            raise ConfigError("captions by retrieval need names to choose from: give those of the training concepts.")
        texts = torch.as_tensor(encode_texts([PROMPT.format(name) for name in self.names])).float()
        self._texts = normalize(texts, dim=1)

    def captions(self, image_embeds: torch.Tensor) -> list[str]:
        """Return n captions "a picture of X" for image embeddings (n, dim).

        Raises:
            ValueError: Shapes do not fit.
        """
        if image_embeds.ndim != 2 or image_embeds.shape[1] != self._texts.shape[1]:
            raise ValueError(f"image_embeds must be (n, {self._texts.shape[1]}), got {tuple(image_embeds.shape)}")
        nearest = (normalize(image_embeds.float(), dim=1) @ self._texts.T).argmax(1)
        return [PROMPT.format(self.names[i]) for i in nearest.tolist()]
