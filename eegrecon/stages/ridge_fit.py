"""Ridge on the data of stage 1: an encoder of its own, and the linear baseline beside every other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eegrecon.datamodule import ThingsDataModule
from eegrecon.models.encoders.ridge import Ridge, fit_ridge, fit_ridge_in_blocks
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.stages.encoder_scores import val_retrieval

RIDGE_ROWS = 2048  # a block for ridge: 130 MB of 63 channels at 250 samples


def fit_closed_form(
    ridge: Ridge, data: ThingsDataModule, network: AlignedEncoder, *, raw: bool = False
) -> dict[str, Any]:
    """Fits ridge on averaged, channel-normalised training EEG, its penalty chosen by validation retrieval.

    Args:
        ridge: Takes the weights.
        data: Training and validation trials.
        network: Whose channel moments normalise.
        raw: Fold the normalisation into the weights, for EEG in the store's unit.

    Returns:
        The manifest's `selection`.
    """
    mean, std = network.channel_mean.cpu()[:, None], network.channel_std.cpu()[:, None]
    train, val = data.averages("train"), data.averaged("val")

    def pair(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return (ridge.bins(batch["eeg"]) - mean).div_(std).flatten(1), batch["targets"]["image"]

    def score(pred: Tensor) -> float:
        return val_retrieval(pred, {**val, "image_embeds": val["targets"]["image"]}).top1

    val_x, _ = pair(val)
    # By block, so that the rows are in memory together after binning alone, or not at all.
    blocks = (pair(train.__getitems__(rows)) for rows in torch.arange(len(train)).split(RIDGE_ROWS))
    if len(train) <= val_x.shape[1]:
        x, y = (torch.cat(part) for part in zip(*blocks, strict=True))
        fit = fit_ridge(x, y, val_x=val_x, score=score, alphas=ridge.alphas)
    else:  # the trials of many subjects
        fit = fit_ridge_in_blocks(blocks, val_x=val_x, score=score, alphas=ridge.alphas)
    weight, bias = fit.weight, fit.bias
    if raw:
        shape = (-1, len(mean), weight.shape[1] // len(mean))
        weight = (weight.view(shape) / std).flatten(1)
        bias = bias - (weight.view(shape) * mean).sum((1, 2))
    ridge.set_weights(weight, bias)
    scores = {str(alpha): score for alpha, score in fit.scores.items()}
    monitor = f"val/retrieval_top1_{data.split.val_concepts}way"
    value = fit.scores[fit.alpha]
    return {"closed_form": True, "alpha": fit.alpha, "scores": scores, "monitor": monitor, "value": value}
