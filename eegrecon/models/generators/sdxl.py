"""Stage 3's network: SDXL with an IP-Adapter, through diffusers' public API, one embedding per picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from eegrecon.errors import ConfigError, DataError
from eegrecon.models.generators import sdxl_files as files
from eegrecon.models.generators.prompts import PromptEmbeds

DECODED_PIXELS = 2**18  # so many are decoded at once, one picture of 512 px: decoding takes the most memory


class SDXLGenerator(nn.Module):
    """Pictures from image embeddings: frozen `StableDiffusionXLPipeline` plus IP-Adapter.

    Attributes:
        dim: Width of the image embeddings the adapter takes.
        conditioning: The target space the adapter was trained on (keys as in a target store's interface), {} if the
            adapter does not say.
        size: Height and width of the pictures, pixels.
        latent_shape: (4, h, w) of the latents it may start from.
        scaling_factor: Of its autoencoder; latents are the posterior's times this.
        folder: Where the pipeline lies.
    """

    def __init__(
        self,
        base: str = "pocket",
        ip_adapter: str = "",
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        size: int = 64,
        torch_dtype: str = "float32",
        variant: str = "",
        captions: bool = False,
        prompt_strength: float = 1.0,
        strength: float = 0.8,
    ) -> None:
        """Load the pipeline and its adapter from disk; nothing is downloaded.

        Args:
            base: "pocket" (ships with the package), a local `StableDiffusionXLPipeline` folder, or a Hugging Face
                repository that was fetched before, such as "stabilityai/sdxl-turbo".
            ip_adapter: "" for the one file in the base folder's `ip_adapter/`, a local `.safetensors` file, or
                "owner/repository/folder/file.safetensors" fetched before. Published layout, one projection layer.
            num_inference_steps: Denoising steps.
            guidance_scale: Classifier-free guidance; at 1 or below there is none (one network call a step).
            size: Height and width of the pictures, pixels; a multiple of 8 and of the autoencoder's factor.
            torch_dtype: Type the weights are held in: "float32", "bfloat16" or "float16". In float16 the autoencoder
                stays in float32, since SDXL's overflows to black pictures.
            variant: "" or "fp16": which of a repository's weight files are read.
            captions: Keep the text encoders, so that `forward` takes prompts; else only the empty prompt is embedded,
                once, and they are released (1.6 GB of SDXL in half precision).
            prompt_strength: 0: captions count nothing; 1: fully; between: a straight line between the embeddings of
                the empty prompt and of the caption.
            strength: Of latents that are given as a start: how much of the way is still denoised (SDEdit). 0.8 is what
                ATM's code uses in its batch loop (0.5 in its paper); latents from EEG hold little more than layout. At
                1 nothing of them is left: as from noise.

        Raises:
            ConfigError: Unknown `torch_dtype`, or a number outside its range.
            DataError: Weights that are not there, or unreadable.
        """
        super().__init__()
        dtype = files.torch_dtype_of(torch_dtype)
        if num_inference_steps < 1 or size < 1 or guidance_scale < 0:
            raise ConfigError(
                "generator.args: num_inference_steps and size must be at least 1 and guidance_scale at least 0; got "
                f"{num_inference_steps}, {size} and {guidance_scale}."
            )
        if not 0 < strength <= 1 or not 0 <= prompt_strength <= 1:
            raise ConfigError(
                "generator.args: strength must be above 0 and at most 1, and prompt_strength from 0 to 1; got "
                f"{strength} and {prompt_strength}."
            )
        self.folder = files.find_base(base, variant)
        adapter = files.find_adapter(self.folder, ip_adapter)
        self.conditioning = files.conditioning_of(adapter, ip_adapter)
        with files.quiet_diffusers():
            self._pipe = files.load_pipeline(self.folder, dtype, variant)
            self.dim = files.load_adapter(self._pipe, adapter)
        factor = self._pipe.vae_scale_factor
        if size % max(8, factor):
            raise ConfigError(f"generator.args.size is {size}; it must be a multiple of {max(8, factor)} for {base}.")
        # registered so that .to(device) reaches them; the pipeline holds the same objects
        self.unet, self.vae = self._pipe.unet, self._pipe.vae
        self.prompt_embeds = PromptEmbeds(self._pipe, captions=captions, strength=prompt_strength)
        self._from_latents = files.image_to_image(self._pipe)
        self.requires_grad_(False)
        self.eval()
        self.num_inference_steps, self.guidance_scale, self.size = num_inference_steps, guidance_scale, size
        self.strength = float(strength)
        self.latent_shape = (int(self.vae.config.latent_channels), size // factor, size // factor)
        self.scaling_factor = float(self.vae.config.scaling_factor)
        self._vae_moments = _vae_moments(self.vae.config)

    @property
    def decoded_together(self) -> int:
        """How many pictures the autoencoder decodes at once, whatever the batch."""
        return max(1, DECODED_PIXELS // self.size**2)

    def check(self, *, latents: bool = False, captions: bool = False) -> None:
        """Whether it can be called with latents or captions, before anything is made.

        Raises:
            ConfigError: It cannot, with what to change.
        """
        self.prompt_embeds.check(captions=captions)
        most = int(self._pipe.scheduler.config.num_train_timesteps)
        if self.num_inference_steps > most:
            raise ConfigError(
                f"generator.args: num_inference_steps is {self.num_inference_steps}, but this scheduler was made for "
                f"{most} at most: lower it."
            )
        if latents and int(self.num_inference_steps * self.strength) < 1:
            raise ConfigError(
                f"generator.args: strength {self.strength:g} of {self.num_inference_steps} steps leaves no step to "
                f"denoise latents: strength x num_inference_steps must be at least 1, so raise one of them."
            )

    @torch.no_grad()
    def forward(
        self,
        image_embeds: torch.Tensor,
        *,
        latents: torch.Tensor | None = None,
        prompts: Sequence[str] | None = None,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Generate one picture per embedding.

        Args:
            image_embeds: (b, dim) in the space the adapter was trained on (`conditioning`).
            latents: (b, 4, h, w) to start from, in this autoencoder's space times its `scaling_factor`, about unit
                variance; they are noised to `strength` by the scheduler. None: from noise.
            prompts: b captions, or None for empty ones; needs `captions`.
            generators: b CPU generators; picture i draws its noise from generators[i] alone, so a picture does not
                depend on what else is in the batch (beyond 1/255 a pixel, from batched arithmetic).

        Returns:
            (b, 3, size, size) float32 in [0, 1].

        Raises:
            ConfigError: An argument this generator cannot honour, or numbers that overflow in its `torch_dtype`.
            DataError: Embeddings or latents that are not finite.
            ValueError: Shapes that do not fit.
        """
        batch = len(image_embeds)
        if image_embeds.ndim != 2 or image_embeds.shape[1] != self.dim:
            raise ValueError(f"image_embeds must be (b, {self.dim}), got {tuple(image_embeds.shape)}")
        if len(generators) != batch:
            raise ValueError(f"one generator per picture is needed: {batch} pictures, {len(generators)} generators")
        _check_finite(image_embeds, "image_embeds", "the prior gave no embedding there")
        self.check(latents=latents is not None, captions=prompts is not None)
        if latents is not None:
            if tuple(latents.shape) != (batch, *self.latent_shape):
                raise ValueError(
                    f"latents must be (b, {', '.join(map(str, self.latent_shape))}) for pictures of {self.size} px, "
                    f"got {tuple(latents.shape)}: make them with this generator's autoencoder at this size"
                )
            _check_finite(latents, "latents", "make them again")
        image_embeds = image_embeds.to(self.unet.dtype)
        if self.guidance_scale > 1:  # diffusers' do_classifier_free_guidance; the negative is the zero embedding
            image_embeds = torch.cat([torch.zeros_like(image_embeds), image_embeds])
        call: dict[str, Any] = {
            **self.prompt_embeds(batch, prompts),
            "ip_adapter_image_embeds": [image_embeds[:, None, :]],
            # the micro-conditioning of training: nothing cropped, nothing enlarged (facts/pocket.md, trap 2)
            "original_size": (self.size, self.size),
            "target_size": (self.size, self.size),
            "crops_coords_top_left": (0, 0),
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": float(self.guidance_scale),
            "generator": list(generators),
            "output_type": "latent",  # decoded below, in the autoencoder's own type
        }
        if latents is None or self.strength == 1:
            made = self._pipe(**call, height=self.size, width=self.size).images
        else:  # diffusers noises four channels as they are: neither encoded nor scaled
            made = self._from_latents(**call, image=latents.to(self.unet.dtype), strength=self.strength).images
        return self._decode(made)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents to pictures, few at a time."""
        latents = latents.to(self.vae.device, self.vae.dtype) / self.scaling_factor
        if self._vae_moments:
            mean, std = self._vae_moments
            latents = latents * std.to(latents) + mean.to(latents)
        rows = self.decoded_together
        pictures = torch.cat([self.vae.decode(part, return_dict=False)[0].float() for part in latents.split(rows)])
        if not pictures.isfinite().all():
            raise ConfigError(
                f"the generator's numbers overflow in {str(self.unet.dtype).removeprefix('torch.')} (its pictures "
                "would be black): set generator.args.torch_dtype to bfloat16 or float32."
            )
        return (pictures / 2 + 0.5).clamp(0, 1)


def _check_finite(values: torch.Tensor, name: str, cure: str) -> None:
    bad = (~values.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"{name} hold NaN or infinity in row {bad[0]} ({len(bad)} of {len(values)} rows), expected finite numbers: "
            f"{cure}."
        )


def _vae_moments(config: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation of latents where an autoencoder's config has them; SDXL's own has none."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return None
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
