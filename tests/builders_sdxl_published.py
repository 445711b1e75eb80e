"""Tiny random SDXL pipelines and IP-Adapters in the folder layouts and key layouts that are published."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from eegrecon.models.generators.pocket_sdxl import PocketDenoiser, build_unet, ip_adapter_state_dict, plain_unet
from tests.builders_sdxl import tiny_vae

WIDTHS, POOLED = (8, 16), 12  # hidden sizes of the two text encoders, and the second one's projection
LETTERS = [*map(chr, range(97, 123)), *(chr(number) + "</w>" for number in range(97, 123))]
# What `stabilityai/sdxl-turbo` and `stable-diffusion-xl-base-1.0` name in scheduler/scheduler_config.json.
SCHEDULERS = {"turbo": "EulerAncestralDiscreteScheduler", "base": "EulerDiscreteScheduler"}
SPACING = {"turbo": "trailing", "base": "leading"}


def scheduler_of(kind: str):
    import diffusers

    return getattr(diffusers, SCHEDULERS[kind])(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing=SPACING[kind]
    )


def write_tokenizer(folder: Path, pad: str):
    """A CLIP tokenizer of single letters, in the published files."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    words = ["<|startoftext|>", "<|endoftext|>", "!", *LETTERS]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token=pad)


def text_encoder(second: bool):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if second else CLIPTextModel
    config = CLIPTextConfig(
        vocab_size=3 + len(LETTERS),
        hidden_size=WIDTHS[second],
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=POOLED,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2 if second else 1,
        initializer_factor=20.0,  # so that words show in the picture
    )
    return kind(config).eval()


def tiny_published(
    folder: Path, kind: str = "turbo", dim: int = 1024, size: int = 16, *, encoders: str = "both", vae=None
) -> Path:
    """Write a pipeline folder as published; beside it, in `sdxl_models/`, the adapter of that width.

    Args:
        folder: To write.
        kind: "turbo" or "base".
        dim: 1024 (`ip-adapter_sdxl_vit-h`) or 1280 (`ip-adapter_sdxl`, of bigG).
        size: Pictures, pixels.
        encoders: "both", or "second" (as the SDXL refiner).
        vae: Another autoencoder.
    """
    from diffusers import StableDiffusionXLPipeline

    both = encoders == "both"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = build_unet(
            sample_size=size // 4,
            block_out_channels=(8, 16),
            cross_attention_dim=sum(WIDTHS) if both else WIDTHS[1],
            pooled_dim=POOLED,
            head_dim=8,
            norm_num_groups=4,
        )
        denoiser = PocketDenoiser(unet, dim=dim, size=size)
        for parameter in denoiser.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        scratch = folder.parent / f"{folder.name}-scratch"
        pipe = StableDiffusionXLPipeline(
            vae=vae or tiny_vae(size),
            text_encoder=text_encoder(False) if both else None,
            text_encoder_2=text_encoder(True),
            tokenizer=write_tokenizer(scratch / "one", "<|endoftext|>") if both else None,
            tokenizer_2=write_tokenizer(scratch / "two", "!"),
            unet=plain_unet(denoiser),
            scheduler=scheduler_of(kind),
            add_watermarker=False,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    adapter = {key: value.detach().contiguous() for key, value in ip_adapter_state_dict(denoiser).items()}
    adapters = folder.parent / "sdxl_models"
    adapters.mkdir(exist_ok=True)
    save_file(adapter, adapters / f"ip-adapter_sdxl{'_vit-h' if dim == 1024 else ''}.safetensors")
    return folder


def adapter_of(folder: Path, dim: int = 1024) -> Path:
    return folder.parent / "sdxl_models" / f"ip-adapter_sdxl{'_vit-h' if dim == 1024 else ''}.safetensors"
