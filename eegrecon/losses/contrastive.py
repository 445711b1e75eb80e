"""Contrastive losses between EEG embeddings and image embeddings."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def same_image(image_index: Int[Tensor, "b ..."]) -> Bool[Tensor, "b b"]:
    """Which pairs of a batch share an id (of a picture, of a concept): (b,) -> (b, b) bool, True on the diagonal.

    Mixed rows show several pictures, (b, k): a pair shares one if any of the two rows' ids is the same.
    """
    ids = image_index.reshape(len(image_index), -1)
    return (ids[:, None, :, None] == ids[None, :, None, :]).flatten(2).any(2)


def info_nce(
    eeg_embeds: Float[Tensor, "b dim"],
    image_embeds: Float[Tensor, "b dim"],
    logit_scale: Float[Tensor, ""],
    positives: Bool[Tensor, "b b"] | None = None,
    *,
    normalise_eeg: bool = True,
    normalise_image: bool = True,
    raw_scale: bool = False,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy over similarities (CLIP, Radford et al. 2021; ATM's ClipLoss).

    By default both sides are L2-normalised here and `logit_scale` is exponentiated, unlike ATM's code (facts/atm.md,
    points 4 and 2.4), which uses a raw factor and an unnormalised EEG side: the last three arguments.

    Args:
        eeg_embeds: (b, dim); row i belongs to row i of `image_embeds`.
        image_embeds: (b, dim).
        logit_scale: scalar, log space (the factor itself if `raw_scale`).
        positives: (b, b) bool; off the diagonal, True says that both rows show one picture. Such a pair is no negative:
            it leaves the denominator (repetitions of a picture in a batch are false negatives otherwise). None: all
            other rows are negatives.
        normalise_eeg: divide EEG embeddings by their norm.
        normalise_image: divide image embeddings by their norm.
        raw_scale: multiply by `logit_scale`, not by its exponential.

    Returns:
        Scalar, the mean of both directions; log(b) at chance, 0 at perfection.
    """
    logits = _logits(eeg_embeds, image_embeds, logit_scale, normalise_eeg, normalise_image, raw_scale)
    target = torch.arange(len(logits), device=logits.device)
    if positives is not None:
        logits = logits.masked_fill(_left_out(positives), float("-inf"))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def siglip(
    eeg_embeds: Float[Tensor, "b dim"],
    image_embeds: Float[Tensor, "b dim"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    positives: Bool[Tensor, "b b"] | None = None,
    *,
    normalise_eeg: bool = True,
    normalise_image: bool = True,
    raw_scale: bool = False,
) -> Float[Tensor, ""]:
    """Sum over all pairs of -log sigmoid(±(scale·similarity + bias)), per row (SigLIP, Zhai et al. 2023, equation 1).

    Every pair is a yes-or-no question of its own: + on the diagonal, - elsewhere.

    Args:
        eeg_embeds: (b, dim); row i belongs to row i of `image_embeds`.
        image_embeds: (b, dim).
        logit_scale: as in `info_nce`.
        logit_bias: scalar, added to every logit; it makes up for the many negatives (paper: -10 at first).
        positives: as in `info_nce`: such a pair is left out.
        normalise_eeg: as in `info_nce`.
        normalise_image: as in `info_nce`.
        raw_scale: as in `info_nce`.

    Returns:
        Scalar; 0 at perfection, b·log 2 if every logit is 0.
    """
    logits = _logits(eeg_embeds, image_embeds, logit_scale, normalise_eeg, normalise_image, raw_scale)
    logits = logits + logit_bias.to(logits.dtype)
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    losses = F.softplus(-sign * logits)
    if positives is not None:
        losses = losses.masked_fill(_left_out(positives), 0.0)
    return losses.sum() / len(logits)


def _logits(
    eeg_embeds: Tensor, image_embeds: Tensor, logit_scale: Tensor, by_eeg: bool, by_image: bool, raw: bool
) -> Tensor:
    precise = torch.promote_types(image_embeds.dtype, torch.float32)  # never half precision, whatever autocast gave
    with torch.autocast(eeg_embeds.device.type, enabled=False):
        eeg, image = eeg_embeds.to(precise), image_embeds.to(precise)
        eeg = F.normalize(eeg, dim=1) if by_eeg else eeg
        image = F.normalize(image, dim=1) if by_image else image
        factor = logit_scale.to(precise)
        return (factor if raw else factor.exp()) * eeg @ image.T


def _left_out(positives: Tensor) -> Tensor:
    off_diagonal = ~torch.eye(len(positives), dtype=torch.bool, device=positives.device)
    return (positives | positives.T) & off_diagonal
