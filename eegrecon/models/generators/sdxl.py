"""Stage 3's network: SDXL with an IP-Adapter, through diffusers' public API, one embedding per picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eegrecon.errors import ConfigError, DataError
from eegrecon.models.generators.pocket_sdxl import CONDITIONING_FILE, IP_ADAPTER_FOLDER

POCKET_DIRECTORY = Path(__file__).resolve().parents[2] / "pocket" / "weights" / "sdxl"

# What published adapters were trained on (h94/IP-Adapter README): file stem → target space.
PUBLISHED_CONDITIONING: dict[str, dict[str, Any]] = {
    "ip-adapter_sdxl_vit-h": {
        "model": "ViT-H-14",
        "weights_tag": "laion2b_s32b_b79k",
        "dim": 1024,
        "normalised": False,
    },
    "ip-adapter_sdxl": {"model": "ViT-bigG-14", "weights_tag": "laion2b_s39b_b160k", "dim": 1280, "normalised": False},
}


class SDXLGenerator(nn.Module):
    """Pictures from image embeddings: frozen `StableDiffusionXLPipeline` plus IP-Adapter.

    Attributes:
        dim: Width of the image embeddings the adapter takes.
        conditioning: The target space the adapter was trained on (keys as in a target store's interface), {} if the
            adapter does not say.
        size: Height and width of the pictures, pixels.
    """

    def __init__(
        self,
        base: str = "pocket",
        ip_adapter: str = "",
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        size: int = 64,
        torch_dtype: str = "float32",
    ) -> None:
        """Load the pipeline and its adapter from disk; nothing is downloaded.

        Args:
            base: "pocket" (ships with the package), a local `StableDiffusionXLPipeline` folder, or a Hugging Face
                repository that was fetched before, such as "stabilityai/sdxl-turbo".
            ip_adapter: "" for the one file in the base folder's `ip_adapter/`, a local `.safetensors` file, or
                "owner/repository/folder/file.safetensors" fetched before. Published layout, one projection layer.
            num_inference_steps: Denoising steps.
            guidance_scale: Classifier-free guidance; at 1 or below there is none (one network call a step).
            size: Height and width of the pictures, pixels; a multiple of the autoencoder's factor.
            torch_dtype: Type the weights are held in: "float32", "bfloat16" or "float16".

        Raises:
            ConfigError: Unknown `torch_dtype`, or a number outside its range.
            DataError: Weights that are not there, or unreadable.
        """
        super().__init__()
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if torch_dtype not in dtypes:
            raise ConfigError(f"generator.args.torch_dtype is {torch_dtype!r}; choose one of {', '.join(dtypes)}.")
        if num_inference_steps < 1 or size < 1 or guidance_scale < 0:
            raise ConfigError(
                "generator.args: num_inference_steps and size must be at least 1 and guidance_scale at least 0; got "
                f"{num_inference_steps}, {size} and {guidance_scale}."
            )
        folder = POCKET_DIRECTORY if base == "pocket" else Path(base)
        with _quiet_diffusers():
            self._pipe = _load_pipeline(folder if base == "pocket" or folder.is_dir() else base, dtypes[torch_dtype])
            weights = _adapter_weights(folder, ip_adapter)
            _load_adapter(self._pipe, weights)
        if size % self._pipe.vae_scale_factor:
            raise ConfigError(
                f"generator.args.size is {size}; it must be a multiple of {self._pipe.vae_scale_factor} for {base}."
            )
        # registered so that .to(device) reaches them; the pipeline holds the same objects
        self.unet, self.vae = self._pipe.unet, self._pipe.vae
        self.text_encoders = nn.ModuleList(
            encoder for encoder in (self._pipe.text_encoder, self._pipe.text_encoder_2) if encoder is not None
        )
        self.requires_grad_(False)
        self.eval()
        self.num_inference_steps, self.guidance_scale, self.size = num_inference_steps, guidance_scale, size
        self.dim = self.unet.encoder_hid_proj.image_projection_layers[0].image_embeds.in_features
        self.conditioning = _conditioning(weights)

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
            latents: Low-level latents to start from; not supported yet, must be None.
            prompts: b captions, or None for empty ones. The pocket model has no text encoder and takes none.
            generators: b CPU generators; picture i draws its noise from generators[i] alone, so a picture does not
                depend on what else is in the batch (beyond 1/255 a pixel, from batched arithmetic).

        Returns:
            (b, 3, size, size) float32 in [0, 1].

        Raises:
            ConfigError: An argument this generator cannot honour.
            ValueError: Shapes that do not fit.
        """
        batch = len(image_embeds)
        if image_embeds.ndim != 2 or image_embeds.shape[1] != self.dim:
            raise ValueError(f"image_embeds must be (b, {self.dim}), got {tuple(image_embeds.shape)}")
        if len(generators) != batch:
            raise ValueError(f"one generator per picture is needed: {batch} pictures, {len(generators)} generators")
        if latents is not None:
            raise ConfigError("the sdxl generator does not start from low-level latents yet; pass latents=None.")
        image_embeds = image_embeds.to(self.unet.dtype)
        if self.guidance_scale > 1:  # diffusers' do_classifier_free_guidance; the negative is the zero embedding
            image_embeds = torch.cat([torch.zeros_like(image_embeds), image_embeds])
        pictures = self._pipe(
            **self._text(batch, prompts),
            ip_adapter_image_embeds=[image_embeds[:, None, :]],
            height=self.size,
            width=self.size,
            # the micro-conditioning of training: nothing cropped, nothing enlarged (facts/pocket.md, trap 2)
            original_size=(self.size, self.size),
            target_size=(self.size, self.size),
            crops_coords_top_left=(0, 0),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=float(self.guidance_scale),
            generator=list(generators),
            output_type="pt",
        ).images
        return pictures.float().clamp(0, 1)

    def _text(self, batch: int, prompts: Sequence[str] | None) -> dict[str, Any]:
        if len(self.text_encoders):
            if prompts is not None and len(prompts) != batch:
                raise ValueError(f"one prompt per picture is needed: {batch} pictures, {len(prompts)} prompts")
            return {"prompt": list(prompts) if prompts is not None else [""] * batch}
        if prompts is not None:
            raise ConfigError("this generator has no text encoder and cannot use captions; pass prompts=None.")
        config = self.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        zeros = torch.zeros(batch, 1, config.cross_attention_dim, dtype=self.unet.dtype, device=self.unet.device)
        zeros_pooled = zeros.new_zeros(batch, pooled)
        return {
            "prompt_embeds": zeros,
            "negative_prompt_embeds": zeros,
            "pooled_prompt_embeds": zeros_pooled,
            "negative_pooled_prompt_embeds": zeros_pooled,
        }


def _load_pipeline(base: Path | str, dtype: torch.dtype) -> Any:
    from diffusers import StableDiffusionXLPipeline

    class PerPicturePipeline(StableDiffusionXLPipeline):
        """SDXL whose adapter embeddings belong to one picture each.

        diffusers 0.42.1 repeats `ip_adapter_image_embeds` by the batch size, so that every picture of a batch sees
        every embedding of it, without an error (facts/pocket.md, trap 1). Here they pass as they come:
        [(b or 2b, 1, dim)], negatives first.
        """

        def prepare_ip_adapter_image_embeds(
            self,
            ip_adapter_image: Any,
            ip_adapter_image_embeds: list[torch.Tensor],
            device: torch.device,
            num_images_per_prompt: int,
            do_classifier_free_guidance: bool,
        ) -> list[torch.Tensor]:
            return [embeds.to(device=device) for embeds in ip_adapter_image_embeds]

    if isinstance(base, Path) and not (base / "model_index.json").is_file():
        cure = "run `make pocket-weights`" if base == POCKET_DIRECTORY else "check generator.args.base"
        raise DataError(f"no SDXL pipeline at {base}: model_index.json is missing; {cure}.")
    try:
        pipe = PerPicturePipeline.from_pretrained(
            base, dtype=dtype, add_watermarker=False, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise DataError(
            f"generator.args.base {str(base)!r} is neither a readable folder nor a fetched Hugging Face repository; "
            f"fetch it with `hf download {base}` or name the folder it lies in ({cause})."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _adapter_weights(base: Path, ip_adapter: str) -> Path | str:
    if ip_adapter:
        path = Path(ip_adapter)
        if path.is_file():
            return path
        if ip_adapter.count("/") < 2 or path.is_absolute() or not ip_adapter.endswith(".safetensors"):
            raise DataError(
                f"generator.args.ip_adapter {ip_adapter!r} is no file; name a local .safetensors file or "
                "owner/repository/folder/file.safetensors of a fetched repository."
            )
        return ip_adapter
    found = sorted((base / IP_ADAPTER_FOLDER).glob("*.safetensors")) if base.is_dir() else []
    if len(found) != 1:
        raise DataError(
            f"expected one IP-Adapter file in {base / IP_ADAPTER_FOLDER}, found {len(found)}; "
            "name the file in generator.args.ip_adapter."
        )
    return found[0]


def _load_adapter(pipe: Any, weights: Path | str) -> None:
    if isinstance(weights, Path):
        where, subfolder, name = str(weights.parent), "", weights.name
    else:
        parts = weights.split("/")
        where, subfolder, name = "/".join(parts[:2]), "/".join(parts[2:-1]), parts[-1]
    try:
        pipe.load_ip_adapter(
            where, subfolder=subfolder, weight_name=name, image_encoder_folder=None, local_files_only=True
        )
    except OSError as error:
        raise DataError(
            f"generator.args.ip_adapter {str(weights)!r} is not on this machine; fetch it with "
            f"`hf download {where} {subfolder}/{name}` or name a local file."
        ) from error


def _conditioning(weights: Path | str) -> dict[str, Any]:
    beside = Path(weights).parent / CONDITIONING_FILE
    if beside.is_file():
        return json.loads(beside.read_text())
    return dict(PUBLISHED_CONDITIONING.get(Path(weights).stem, {}))


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    # load_ip_adapter warns that there is no image encoder, which is the point of passing embeddings
    from diffusers.utils import logging

    level, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if progress:
            logging.enable_progress_bar()
