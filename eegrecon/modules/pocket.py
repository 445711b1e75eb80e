"""LightningModules that train what the pocket set ships: projection heads, autoencoder, denoiser, captioner."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from torch import nn


def decaying_lr(warmup: int, total: int) -> Callable[[int], float]:
    """Return a learning-rate factor: linear warm-up, then linear to zero."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, min(1.0, (total - step) / max(1.0, total - warmup)))

    return factor


class _Steps(LightningModule):
    """Shared wiring: AdamW with a step-wise decaying rate, the loss terms logged and shown."""

    def __init__(self, lr: float, total_steps: int, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.lr, self.total_steps, self.weight_decay = lr, total_steps, weight_decay

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad], lr=self.lr, weight_decay=self.weight_decay
        )
        warmup = min(100, max(1, self.total_steps // 10))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, decaying_lr(warmup, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def report(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, prog_bar=True)
        return torch.stack(list(terms.values())).sum()


class HeadsModule(_Steps):
    """Train the pocket CLIP's two linear heads on cached tower features.

    Contrastive between pictures and names (a picture's positives are all rows of its concept), plus a term that keeps
    the embedding able to give the image tower's features back, so that it describes pictures and not only names.

    Args:
        image_head: Linear(1280, dim).
        text_head: Linear(384, dim, no bias).
        logit_scale: scalar parameter, log space.
        keep: weight of the feature-keeping term.
    """

    def __init__(
        self, image_head: nn.Linear, text_head: nn.Linear, logit_scale: torch.Tensor, keep: float, **steps: Any
    ) -> None:
        super().__init__(**steps)
        self.image_head, self.text_head, self.keep = image_head, text_head, keep
        self.logit_scale = torch.nn.Parameter(logit_scale.detach().clone())
        self.decoder = torch.nn.Linear(image_head.out_features, image_head.in_features)
        self.train()  # the heads come from a model in eval mode

    def training_step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Loss of (features (b, 1280), pooled texts (b, 384), concept (b,))."""
        features, texts, concept = batch
        image_embeds = self.image_head(features)
        text_embeds = self.text_head(texts)
        logits = self.logit_scale.exp() * F.normalize(image_embeds, dim=1) @ F.normalize(text_embeds, dim=1).T
        same = (concept[:, None] == concept[None]).float()
        target = same / same.sum(1, keepdim=True)
        contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        kept = F.mse_loss(self.decoder(image_embeds), features) / features.var(0).mean()
        # Unit variance per dimension keeps the space at the scale that the generator and the priors expect.
        scale = (image_embeds.var(0).mean() - 1) ** 2 + image_embeds.mean(0).pow(2).mean()
        return self.report({"contrastive": contrastive, "keep": self.keep * kept, "scale": scale})


class AutoencoderModule(_Steps):
    """Train a diffusers ``AutoencoderKL`` on pictures: L1 on pixels and on edges, a tiny KL term.

    All but the last twentieth of the steps see random quarters of the pictures (the network is convolutional but for
    one attention layer), which trains four times as fast.
    """

    def __init__(self, vae: nn.Module, kl: float = 1e-6, **steps: Any) -> None:
        super().__init__(**steps)
        self.vae, self.kl = vae, kl

    def training_step(self, batch: tuple[torch.Tensor]) -> torch.Tensor:
        """Loss of uint8 pictures (b, 3, h, w)."""
        pictures = batch[0].float() / 127.5 - 1
        if self.global_step < 0.95 * self.total_steps:
            half = pictures.shape[-1] // 2
            top, left = torch.randint(0, half + 1, (2,)).tolist()
            pictures = pictures[..., top : top + half, left : left + half]
        posterior = self.vae.encode(pictures).latent_dist  # type: ignore[operator]
        decoded = self.vae.decode(posterior.sample()).sample.float()  # type: ignore[operator]
        edges = torch.stack([F.l1_loss(decoded.diff(dim=d), pictures.diff(dim=d)) for d in (2, 3)]).sum()
        kl = self.kl * posterior.kl().mean()
        return self.report({"pixels": F.l1_loss(decoded, pictures), "edges": edges, "kl": kl})


class DenoiserModule(_Steps):
    """Train the pocket SDXL's UNet and IP-Adapter: v-prediction, the image embedding dropped per picture.

    The prompt is zeros throughout, so the text attention is idle; ``CaptionModule`` gives it something to say.

    Args:
        denoiser: ``PocketDenoiser``.
        scheduler: diffusers scheduler of the pipeline.
        drop: share of rows without image embedding, for classifier-free guidance.
        embed_noise: standard deviation of the noise on the (unit-variance) image embedding; keeps the network from
            memorising concepts by their exact embedding.
    """

    def __init__(
        self, denoiser: nn.Module, scheduler: Any, drop: float = 0.1, embed_noise: float = 0.1, **steps: Any
    ) -> None:
        super().__init__(**steps)
        self.denoiser, self.scheduler = denoiser, scheduler
        self.drop, self.embed_noise = drop, embed_noise

    def training_step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Loss of (scaled latents (b, 4, h, w), image embeddings (b, dim))."""
        latents, embeds = batch
        noisy, noise, timesteps = noised(self.scheduler, latents)
        dropped = torch.rand(len(latents), device=latents.device) < self.drop
        embeds = embeds + self.embed_noise * torch.randn_like(embeds)
        # The fused bf16 attention's backward pass is several times slower than plain matrix products on CPU.
        with sdpa_kernel(SDPBackend.MATH):
            velocity = self.denoiser(noisy, timesteps, embeds, drop=dropped).float()
        return self.report({"v": F.mse_loss(velocity, self.scheduler.get_velocity(latents, noise, timesteps))})


def noised(scheduler: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (b, 4, h, w) at random timesteps: (noisy latents, the noise, timesteps (b,))."""
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
    return scheduler.add_noise(latents, noise, timesteps), noise, timesteps


class TextStartModule(_Steps):
    """Teach the text tower to say what the IP-Adapter says of the pictures that a title names.

    A start for ``CaptionModule``, without the UNet and therefore fast. The tokens from the caption's end on learn the
    adapter's own tokens for the mean embedding of the title's pictures, less those for no picture at all; every other
    token, and the whole empty prompt, learns zero. ``start_text`` then has the UNet read them as the adapter's.

    Args:
        denoiser: ``PocketDenoiser``, its UNet and adapter trained; only its text tower is trained here.
        empty_prompt: (1, n_tokens) token ids of "".
        end: id of the token that ends and pads a caption.
        word_noise: see ``PocketDenoiser.encode_text``.
        empty: share of rows that get the empty prompt.
    """

    def __init__(
        self,
        denoiser: Any,
        empty_prompt: torch.Tensor,
        end: int,
        word_noise: float = 0.3,
        empty: float = 0.03,
        **steps: Any,
    ) -> None:
        super().__init__(**steps)
        self.text_encoder = denoiser.text_encoder
        self.empty_prompt: torch.Tensor
        self.register_buffer("empty_prompt", empty_prompt, persistent=False)
        self.end, self.word_noise, self.empty = end, word_noise, empty
        self._denoiser = (denoiser,)  # in a tuple, or its other weights would count as this module's
        self.train()

    def targets(self, ids: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Return what the tokens (b, n_tokens) of captions learn, (b, n_tokens, width), from embeddings (b, dim)."""
        project = self._denoiser[0].unet.encoder_hid_proj.image_projection_layers[0]
        with torch.no_grad():
            own = project(image_embeds[:, None]) - project(torch.zeros_like(image_embeds[:1, None]))
        own = own.reshape(len(ids), -1, own.shape[-1])  # (b, 4, width), repeated over the places
        places = torch.arange(ids.shape[1], device=ids.device) % own.shape[1]
        says = (ids == self.end) & (ids != self.empty_prompt).any(1, keepdim=True)
        return own[:, places] * says[..., None]

    def training_step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Loss of (captions (b, n_variants, n_tokens), mean image embeddings of what they name (b, dim))."""
        captions, image_embeds = batch
        n = len(captions)
        variant = torch.randint(0, captions.shape[1], (n,), device=captions.device)
        ids = captions[torch.arange(n, device=captions.device), variant]
        empty = torch.rand(n, device=captions.device) < self.empty
        ids = ids.where(~empty[:, None], self.empty_prompt)
        said, _ = self._denoiser[0].encode_text(ids, word_noise=self.word_noise)
        return self.report({"tokens": F.mse_loss(said.float(), self.targets(ids, image_embeds).float())})


class CaptionModule(_Steps):
    """Teach captions to do in the UNet what the image embeddings of what they name do through the IP-Adapter.

    The pictures of one title differ in more than its words can say, so a denoising loss hardly notices a caption
    (experiments/LOG.md, 2026-11-23). Here the trained UNet itself is the teacher, given the embedding that a caption
    stands for, and the same UNet given the caption learns to answer alike: by its text attention's keys and values, the
    pooled prompt's way into the time embedding, and the text tower. Nothing else is trained, so with zeros for a prompt
    the generator stays what it was, to the bit.

    What a row is told, and what its teacher is told: the empty prompt beside an image embedding (teacher: the embedding
    alone), or a caption alone (teacher: the mean embedding of what it names), or a caption beside a noisy embedding
    (teacher: that embedding, ``pull`` of the way to the one named).

    Args:
        denoiser: ``PocketDenoiser``; UNet and adapter trained, tower started by ``TextStartModule``.
        scheduler: diffusers scheduler of the pipeline.
        empty_prompt: (1, n_tokens) token ids of "".
        captions: (m, n_variants, n_tokens) token ids of m titles.
        named: (m, dim) mean image embeddings of what they name.
        empty: share of rows with the empty prompt.
        imageless: share of rows without image embedding.
        other: share of rows whose caption is another's than their picture's.
        pull: how far a caption moves the image embedding beside it, in [0, 1].
        embed_noise: largest standard deviation of the noise on image embeddings, drawn per row; decoded ones err.
        word_noise: see ``PocketDenoiser.encode_text``.
    """

    def __init__(
        self,
        denoiser: Any,
        scheduler: Any,
        empty_prompt: torch.Tensor,
        captions: torch.Tensor,
        named: torch.Tensor,
        empty: float = 0.25,
        imageless: float = 0.5,
        other: float = 0.5,
        pull: float = 0.5,
        embed_noise: float = 0.7,
        word_noise: float = 0.3,
        **steps: Any,
    ) -> None:
        super().__init__(**steps)
        denoiser.unet.requires_grad_(False)
        for name, weight in denoiser.unet.named_parameters():
            weight.requires_grad_(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")))
        pooled = denoiser.unet.add_embedding.linear_1.weight.requires_grad_(True)
        columns = torch.arange(pooled.shape[1]) < denoiser.text_encoder.config.projection_dim
        pooled.register_hook(lambda grad: grad * columns.to(grad))  # the other columns read sizes, not words
        self.denoiser, self.scheduler = denoiser, scheduler
        for name, value in (("empty_prompt", empty_prompt), ("captions", captions), ("named", named)):
            self.register_buffer(name, value, persistent=False)
        self.empty, self.imageless, self.other, self.pull = empty, imageless, other, pull
        self.embed_noise, self.word_noise = embed_noise, word_noise

    def told(self, embeds: torch.Tensor, title: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw what rows with image embeddings (b, dim) of titles (b,) are told.

        Returns:
            Token ids (b, n_tokens), image embeddings (b, dim), and the image embeddings (b, dim) of their teacher.
        """
        n, device = len(embeds), embeds.device
        captions: torch.Tensor = self.captions  # type: ignore[assignment]
        named: torch.Tensor = self.named  # type: ignore[assignment]
        empty, imageless, other = (
            torch.rand(n, device=device) < share for share in (self.empty, self.imageless, self.other)
        )
        title = torch.where(other, torch.randint(0, len(captions), (n,), device=device), title)
        variant = torch.randint(0, captions.shape[1], (n,), device=device)
        ids = torch.where(empty[:, None], self.empty_prompt, captions[title, variant])  # type: ignore[arg-type]
        spread = self.embed_noise * torch.rand(n, 1, device=device)
        embeds = (embeds + spread * torch.randn_like(embeds)).masked_fill(imageless[:, None], 0.0)
        pull = torch.where(empty, 0.0, torch.where(imageless, 1.0, self.pull))
        return ids, embeds, torch.lerp(embeds, named[title], pull[:, None])

    def training_step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Loss of (scaled latents (b, 4, h, w), image embeddings (b, dim), number of their title (b,))."""
        latents, embeds, title = batch
        noisy, _, timesteps = noised(self.scheduler, latents)
        ids, embeds, teachers = self.told(embeds, title)
        with sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                wanted = self.denoiser(noisy, timesteps, teachers).float()
            prompt = self.denoiser.encode_text(ids, word_noise=self.word_noise)
            velocity = self.denoiser(noisy, timesteps, embeds, prompt).float()
        return self.report({"v": F.mse_loss(velocity, wanted)})


class CaptionerModule(_Steps):
    """Train the pocket captioner: next word after (visual tokens, words so far), word table frozen.

    Args:
        model: a ``GitForCausalLM`` of :func:`eegrecon.models.captioners.git.build_pocket_git`.
        feature_noise: standard deviation of the noise on the visual tokens, in units of their own mean spread.
        flatten: share of rows whose every token becomes the first, the mean over the picture. A projector's tokens
            know where things are no better than the one embedding they come from.
    """

    def __init__(self, model: nn.Module, feature_noise: float = 0.3, flatten: float = 0.3, **steps: Any) -> None:
        super().__init__(**steps)
        self.model, self.feature_noise, self.flatten = model, feature_noise, flatten
        self.train()

    def training_step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Loss of (visual tokens (b, n_tokens, width), token ids (b, n), their mask (b, n))."""
        features, ids, mask = batch
        features = features.float()
        features = features + self.feature_noise * features.std(0).mean() * torch.randn_like(features)
        flat = torch.rand(len(features), device=features.device) < self.flatten
        features = torch.where(flat[:, None, None], features[:, :1], features)
        git: Any = self.model.git
        with sdpa_kernel(SDPBackend.MATH):
            hidden = git(input_ids=ids, attention_mask=mask, pixel_values=features[:, None]).last_hidden_state
        known = mask[:, 1:].bool()  # only words that are there are scored: the output layer is most of the work
        words = hidden[:, features.shape[1] : -1]  # behind the visual tokens
        logits = self.model.output(words[known])  # type: ignore[operator]
        return self.report({"word": F.cross_entropy(logits.float(), ids[:, 1:][known])})
