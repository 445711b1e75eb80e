"""Contrastive losses between EEG embeddings and image embeddings."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def same_image(image_index: Int[Tensor, " b"]) -> Bool[Tensor, "b b"]:
    """Which pairs of a batch show one picture: (b,) ids -> (b, b) bool, True on the diagonal."""
    return image_index[:, None] == image_index[None, :]


def info_nce(
    eeg_embeds: Float[Tensor, "b dim"],
    image_embeds: Float[Tensor, "b dim"],
    logit_scale: Float[Tensor, ""],
    positives: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy over cosine similarities (CLIP, Radford et al. 2021; ATM's ClipLoss).

    Both sides are L2-normalised here and `logit_scale` is exponentiated, unlike ATM's code (facts/atm.md, points 4
    and 2.4), which uses a raw factor and an unnormalised EEG side.

    Args:
        eeg_embeds: (b, dim); row i belongs to row i of `image_embeds`.
        image_embeds: (b, dim).
        logit_scale: scalar, log space.
        positives: (b, b) bool; off the diagonal, True says that both rows show one picture. Such a pair is no negative:
            it leaves the denominator (repetitions of a picture in a batch are false negatives otherwise). None: all
            other rows are negatives.

    Returns:
        Scalar, the mean of both directions; log(b) at chance, 0 at perfection.
    """
    precise = torch.promote_types(image_embeds.dtype, torch.float32)  # never half precision, whatever autocast gave
    with torch.autocast(eeg_embeds.device.type, enabled=False):
        eeg = F.normalize(eeg_embeds.to(precise), dim=1)
        image = F.normalize(image_embeds.to(precise), dim=1)
        logits = logit_scale.to(precise).exp() * eeg @ image.T
    target = torch.arange(len(logits), device=logits.device)
    if positives is not None:
        off_diagonal = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill((positives | positives.T) & off_diagonal, float("-inf"))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
