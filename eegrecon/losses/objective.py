"""The encoder's loss as one value: which terms, with which weights, and how the contrastive ones are computed."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eegrecon.losses.contrastive import info_nce, same_image, siglip
from eegrecon.losses.regression import cosine_embedding, mse_embedding, mse_latent


@dataclass(frozen=True)
class EncoderObjective:
    """`scale * (contrastive·C(eeg, image) + text·C(eeg, text) + mse·MSE + cosine·(1 - cos) + vae_latent·MSE)`.

    ATM's generation loss (facts/atm.md 2.4, dongyangli-del/EEG_Image_decode@49cb3a2 ATMS_reconstruction.py:198) is
    contrastive .1, mse .9, scale 10; its retrieval loss (ATMS_retrieval.py:206) contrastive .99, text .01; both with
    positives none, normalise_eeg and normalise_image false, logit_scale raw.

    Attributes:
        contrastive: Weight of the contrastive term with the image embedding.
        mse: Weight of the regression onto the image embedding.
        cosine: Weight of one minus the cosine to the image embedding.
        text: Weight of the contrastive term with the text embedding.
        vae_latent: Weight of the regression of the VAE latent.
        scale: Factor on the sum.
        kind: `info_nce` or `siglip`.
        positives: Pairs of rows that are no negatives: of one `image`, of one `concept`, or `none`. The text term takes
            concepts for `image`, too: all pictures of a concept have one vector there.
        normalise_eeg: Divide EEG embeddings by their norm in the contrastive terms.
        normalise_image: Divide image and text embeddings by theirs.
        logit_scale: `exp` or `raw`, see `info_nce`.
    """

    contrastive: float
    mse: float
    cosine: float = 0.0
    text: float = 0.0
    vae_latent: float = 0.0
    scale: float = 1.0
    kind: str = "info_nce"
    positives: str = "image"
    normalise_eeg: bool = True
    normalise_image: bool = True
    logit_scale: str = "exp"

    def contrast(
        self,
        eeg_embeds: Tensor,
        embeds: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        share: Tensor | None,
    ) -> Tensor:
        """The contrastive loss of EEG (b, dim) with image or text embeddings (b, dim), a scalar.

        Args:
            eeg_embeds: (b, dim).
            embeds: (b, dim).
            logit_scale: The network's.
            logit_bias: The network's, for siglip.
            share: Of `shared_ids`.
        """
        positives = None if share is None else same_image(share)
        options = {"normalise_eeg": self.normalise_eeg, "normalise_image": self.normalise_image}
        raw = self.logit_scale == "raw"
        if self.kind == "siglip":
            if logit_bias is None:
                raise ValueError("siglip needs a network with a logit_bias")
            return siglip(eeg_embeds, embeds, logit_scale, logit_bias, positives, raw_scale=raw, **options)
        return info_nce(eeg_embeds, embeds, logit_scale, positives, raw_scale=raw, **options)

    def contrasts(
        self, rows: Mapping[str, Tensor], logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The contrastive terms of a whole batch, unweighted: {contrastive[, text]}.

        Args:
            rows: eeg_embeds, image_embeds (b, dim), image_index, concept_index (b,), and text_embeds (b, dim) if the
                text term has a weight.
            logit_scale: The network's.
            logit_bias: The network's, for siglip.
        """
        by = {"image": rows["image_index"], "concept": rows["concept_index"], "none": None}
        scales = (logit_scale, logit_bias)
        terms = {"contrastive": self.contrast(rows["eeg_embeds"], rows["image_embeds"], *scales, by[self.positives])}
        if self.text > 0:
            share = None if self.positives == "none" else rows["concept_index"]
            terms["text"] = self.contrast(rows["eeg_embeds"], rows["text_embeds"], *scales, share)
        return terms

    def regressions(
        self,
        eeg_embeds: Tensor,
        image_embeds: Tensor | None,
        latents: Tensor | None = None,
        target_latents: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The regression terms, unweighted, one number per trial: {[mse][, cosine][, vae_latent]}, each (b,).

        Args:
            eeg_embeds: (b, dim).
            image_embeds: (b, dim), or None: nothing is regressed onto them.
            latents: (b, *latent_shape), or None.
            target_latents: Likewise.
        """
        terms = {}
        if image_embeds is not None:
            terms["mse"] = mse_embedding(eeg_embeds, image_embeds, reduce=False)
        if image_embeds is not None and self.cosine > 0:
            terms["cosine"] = cosine_embedding(eeg_embeds, image_embeds, reduce=False)
        if latents is not None and target_latents is not None:
            terms["vae_latent"] = mse_latent(latents, target_latents, reduce=False)
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of scalar terms times `scale`."""
        return self.scale * torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()
