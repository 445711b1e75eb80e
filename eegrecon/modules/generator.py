"""Stage 3's LightningModule: a frozen generator that `Trainer.predict` runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import nn

from eegrecon.diffusion.samplers import row_generators


class GeneratorModule(lightning.LightningModule):
    """Runs a generator over batches of embeddings; nothing is trained.

    A picture's noise comes from (seed, image_index, draw) alone, so it does not depend on batch size, order or the
    number of devices, beyond 1/255 a pixel.
    """

    def __init__(self, generator: nn.Module, seed: int, words: Sequence[str] = ()) -> None:
        """Wrap a generator.

        Args:
            generator: `forward(image_embeds, *, latents, prompts, generators) -> (b, 3, h, w)` in [0, 1].
            seed: The run's seed.
            words: The prompts that the batches' `caption` counts.
        """
        super().__init__()
        self.generator = generator.requires_grad_(False).eval()
        self.seed, self.words = int(seed), list(words)

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Generate the pictures of a batch.

        Args:
            batch: `image_embeds` (b, dim), `image_index` (b,), `draw` (b,), and where a pathway gives them `latents`
                (b, 4, h, w) and `caption` (b,), which counts `words`.
            batch_idx: Not used.
            dataloader_idx: Not used; the callback that keeps the pictures reads it.

        Returns:
            `pictures` (b, 3, h, w) in [0, 1] on the CPU, `image_index` (b,), `draw` (b,).
        """
        index, draw = batch["image_index"].cpu(), batch["draw"].cpu()
        generators = row_generators(self.seed, index.tolist(), draw.tolist())
        prompts = [self.words[at] for at in batch["caption"].tolist()] if "caption" in batch else None
        pictures = self.generator(
            batch["image_embeds"], latents=batch.get("latents"), prompts=prompts, generators=generators
        )
        return {"pictures": pictures.cpu(), "image_index": index, "draw": draw}
