"""What the UNet reads beside the picture embedding: the embeddings of captions, or of the empty prompt, made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eegrecon.errors import ConfigError, DataError


class PromptEmbeds(nn.Module):
    """Prompt embeddings of a pipeline, in the form its call takes.

    The empty prompt is embedded here once. Without captions that is all there will ever be, and the text encoders
    (0.8 billion parameters of SDXL) are taken out of the pipeline. A pipeline that has none reads zeros.

    Attributes:
        captions: Whether prompts can be given.
    """

    def __init__(self, pipe: Any, *, captions: bool, strength: float) -> None:
        """Embed the empty prompt.

        Args:
            pipe: A `StableDiffusionXLPipeline`; of its text encoders the first, or both, may be None.
            captions: Keep the text encoders for captions.
            strength: 0 is the empty prompt's embedding, 1 the caption's, between them a straight line.

        Raises:
            ConfigError: Captions for a pipeline without text encoders.
            DataError: The text encoders do not fit the UNet.
        """
        super().__init__()
        self._pipe, self.captions, self.strength = [pipe], captions, float(strength)  # a list: no submodule of ours
        self.has_encoders = pipe.text_encoder is not None or pipe.text_encoder_2 is not None
        if captions and not self.has_encoders:
            raise ConfigError(
                "generator.args.captions is true, but this pipeline has no text encoder to read them: leave it out, or "
                "name another base."
            )
        names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
        for name, value in zip(names, self._encode([""]) if self.has_encoders else self._zeros(), strict=True):
            self.register_buffer(name, value, persistent=False)
        if captions:
            # registered so that .to(device) reaches them
            self.text_encoders = nn.ModuleList(
                encoder for encoder in (pipe.text_encoder, pipe.text_encoder_2) if encoder is not None
            )
        else:
            pipe.register_modules(text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None)

    def forward(self, batch: int, prompts: Sequence[str] | None) -> dict[str, Tensor]:
        """The keyword arguments of a pipeline's call for `batch` pictures.

        Args:
            batch: b.
            prompts: b captions, or None for the empty prompt.

        Returns:
            prompt_embeds (b, n_tokens, width), pooled_prompt_embeds (b, pooled) and the same of the negative prompt.

        Raises:
            ConfigError: Captions that cannot be read.
            ValueError: Not one caption a picture.
        """
        given = {name: value.expand(batch, *value.shape[1:]) for name, value in self.named_buffers(recurse=False)}
        if prompts is None:
            return given
        self.check(captions=True)
        if isinstance(prompts, str) or len(prompts) != batch or not all(isinstance(one, str) for one in prompts):
            raise ValueError(f"one prompt per picture is needed: {batch} pictures, prompts {prompts!r:.100}")
        different = list(dict.fromkeys(prompts))  # draws of one trial share their caption
        tokens, pooled = self._encode(different)[:2]
        place = torch.tensor([different.index(prompt) for prompt in prompts], device=tokens.device)
        given["prompt_embeds"] = torch.lerp(given["prompt_embeds"], tokens[place], self.strength)
        given["pooled_prompt_embeds"] = torch.lerp(given["pooled_prompt_embeds"], pooled[place], self.strength)
        return given

    def check(self, *, captions: bool) -> None:
        """Whether captions can be read.

        Raises:
            ConfigError: They cannot.
        """
        if captions and not self.has_encoders:
            raise ConfigError("this generator has no text encoder and cannot use captions; pass prompts=None.")
        if captions and not self.captions:
            raise ConfigError(
                "this generator has released its text encoders and cannot use captions: set "
                "generator.args.captions=true, or pass prompts=None."
            )

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pipe = self._pipe[0]
        parts = {"text_encoder_2": pipe.text_encoder_2, "tokenizer_2": pipe.tokenizer_2}
        if pipe.text_encoder is not None:
            parts["tokenizer"] = pipe.tokenizer
        if lacking := [name for name, part in parts.items() if part is None]:
            raise DataError(
                f"the SDXL pipeline has a text encoder but no {' and no '.join(lacking)}, without which it reads no "
                "prompt: fetch the whole pipeline."
            )
        with torch.no_grad():
            tokens, negative, pooled, negative_pooled = pipe.encode_prompt(prompts, do_classifier_free_guidance=True)
        width, pooled_width = self._widths()
        if tokens.shape[-1] != width or pooled.shape[-1] != pooled_width:
            raise DataError(
                f"the text encoders give {tokens.shape[-1]} numbers a token and {pooled.shape[-1]} a prompt, but the "
                f"UNet takes {width} and {pooled_width}: they belong to another pipeline."
            )
        like = pipe.unet
        return tuple(value.to(like.device, like.dtype) for value in (tokens, pooled, negative, negative_pooled))

    def _zeros(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        width, pooled = self._widths()
        unet = self._pipe[0].unet
        tokens = torch.zeros(1, 1, width, dtype=unet.dtype, device=unet.device)
        return tokens, tokens.new_zeros(1, pooled), tokens.clone(), tokens.new_zeros(1, pooled)

    def _widths(self) -> tuple[int, int]:
        config = self._pipe[0].unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return int(config.cross_attention_dim), int(pooled)
