"""Keeps the pictures of `Trainer.predict` as PNG files, from every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning

from eegrecon.artifacts import atomic_write
from eegrecon.callbacks.grids import to_pil


def picture_file(image_id: str, draw: int = 0) -> str:
    """File name of the picture reconstructed for `image_id`, unique within a partition.

    >>> picture_file("test/00001_aircraft_carrier/aircraft_carrier_06s"), picture_file("test/00002_ant/ant_01b", 3)
    ('00001_aircraft_carrier__aircraft_carrier_06s.png', '00002_ant__ant_01b__draw-3.png')
    """
    stem = image_id.partition("/")[2].replace("/", "__")
    return f"{stem}__draw-{draw}.png" if draw else f"{stem}.png"


class ReconstructionWriter(lightning.Callback):
    """Writes each predicted picture under its image id as soon as it is there.

    Each rank writes the pictures it made, atomically and each under its own name, so ranks need not send pictures to
    each other and the files are what rank 0 scores after the barrier at the end of `Trainer.predict`.
    """

    def __init__(self, folders: Sequence[Path], image_ids: Mapping[int, str]) -> None:
        """Say where to write.

        Args:
            folders: One per predict dataloader, in their order.
            image_ids: image_index to image id.
        """
        super().__init__()
        self.folders = [Path(folder) for folder in folders]
        self.image_ids = dict(image_ids)

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the pictures of one batch; reads `pictures`, `image_index` and `draw` of what the step returned."""
        for picture, index, draw in zip(outputs["pictures"], outputs["image_index"], outputs["draw"], strict=True):
            path = self.folders[dataloader_idx] / picture_file(self.image_ids[int(index)], int(draw))
            with atomic_write(path) as file:
                to_pil(picture).save(file, format="PNG")

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Wait for the other ranks' files."""
        trainer.strategy.barrier("reconstructions written")
