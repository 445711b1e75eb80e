"""What predicted latents are worth: alone, and as the pictures that the VAE decodes from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eegrecon.analysis.scoring import Entry, average
from eegrecon.callbacks.grids import to_pil
from eegrecon.metrics.features import picture_tensor
from eegrecon.metrics.functional.identification import derangement
from eegrecon.metrics.functional.pixels import pixcorr, ssim
from eegrecon.stages.evaluate import MAX_PIXEL_SIZE

_ROWS = 32  # pictures that are decoded or compared at once


def picture_scores(
    latents: Tensor, true: Tensor, mean: Tensor, seen: Sequence[Any], vae: Any, device: Any, *, seed: int
) -> dict[str, Entry]:
    """PixCorr and SSIM of what the VAE decodes, against the pictures that were seen.

    Args:
        latents: (n, c, h, w) predicted, scaled.
        true: (n, c, h, w) of the seen pictures.
        mean: (c, h, w) mean latent of the training pictures.
        seen: n PIL pictures.
        vae: `models.generators.latents.VaeLatents`.
        device: What decodes.
        seed: Of the derangement behind `_shuffled`.

    Returns:
        `val/pixcorr` and `val/ssim`, each also with `_mean_latent` (the decoded mean for every picture: what can be had
        without EEG), `_shuffled` (decoded pictures dealt to other seen ones) and `_ceiling` (the VAE's round trip).
    """
    vae.to(device)
    order = derangement(len(seen), seed)
    decoded = {"": decode(vae, latents, device), "_ceiling": decode(vae, true, device)}
    blank = decode(vae, mean[None], device)
    size = min(MAX_PIXEL_SIZE, blank.shape[-1])
    found: dict[str, list[Tensor]] = {}
    for rows in torch.arange(len(seen)).split(_ROWS):
        compared = picture_tensor([seen[i] for i in rows.tolist()], size)
        shown = {suffix: pictures[rows] for suffix, pictures in decoded.items()}
        shown |= {"_shuffled": decoded[""][order[rows]], "_mean_latent": blank.expand(len(rows), -1, -1, -1)}
        for suffix, pictures in shown.items():
            made = picture_tensor([to_pil(picture / 255) for picture in pictures], size)
            for name, function in (("pixcorr", pixcorr), ("ssim", ssim)):
                found.setdefault(f"val/{name}{suffix}", []).append(function(made, compared))
    means = {name: torch.cat(values) for name, values in found.items()}
    chance = {name: float(means[f"val/{name}_shuffled"].mean()) for name in ("pixcorr", "ssim")}
    return {name: average(values, chance[name.split("/")[1].split("_")[0]]) for name, values in sorted(means.items())}


@torch.inference_mode()
def decode(vae: Any, latents: Tensor, device: Any) -> Tensor:
    """Pictures of scaled latents (n, c, h, w): (n, 3, H, W) uint8 on the CPU."""
    parts = [vae.decode(part.to(device)).clamp(0, 1) for part in latents.split(_ROWS)]
    return torch.cat([(part.float() * 255).round().byte().cpu() for part in parts])
