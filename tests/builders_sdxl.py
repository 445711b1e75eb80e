"""A tiny random SDXL pipeline directory with IP-Adapter, laid out exactly like the pocket one."""

from pathlib import Path

import torch

from eegrecon.models.generators.pocket_sdxl import (
    PocketDenoiser,
    build_unet,
    build_vae,
    save_pocket_sdxl,
    set_scaling_factor,
)


def tiny_denoiser(dim: int = 12, size: int = 16, seed: int = 0) -> PocketDenoiser:
    """A denoiser whose random weights are large enough that condition and noise both show in the picture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = build_unet(
            sample_size=size // 4,
            block_out_channels=(8, 16),
            cross_attention_dim=8,
            pooled_dim=4,
            head_dim=8,
            norm_num_groups=4,
        )
        denoiser = PocketDenoiser(unet, dim=dim, size=size)
        for parameter in denoiser.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return denoiser.eval()


def tiny_vae(size: int = 16, seed: int = 0) -> torch.nn.Module:
    """An autoencoder of two halvings with random weights and a scaling factor that is not 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = build_vae(size=size, block_out_channels=(16, 16, 16))
    set_scaling_factor(vae, 0.7)
    return vae.eval()


def tiny_sdxl(directory: Path, dim: int = 12, size: int = 16, conditioning: dict | None = None) -> Path:
    """Write the pipeline directory (float32, so that results compare exactly) and return it."""
    says = {"model": "tiny", "dim": dim} if conditioning is None else conditioning
    save_pocket_sdxl(directory, tiny_denoiser(dim, size), tiny_vae(size), torch.float32, says)
    return directory
