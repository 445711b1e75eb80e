"""The VAE as a target model: what `extract-targets` calls to make a store of latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import sha256_file
from eegrecon.errors import ConfigError, DataError
from eegrecon.models.generators.sdxl_files import POCKET_DIRECTORY, REPOSITORIES

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

WEIGHTS = "diffusion_pytorch_model.safetensors"


class VaeLatents:
    """Pictures to scaled latents: posterior mean × `scaling_factor`, as the generator's UNet sees them.

    Attributes:
        kind: "vae_latent".
        shape: (4, h, w) of one latent, (4, 16, 16) for the pocket VAE at 64 pixels.
    """

    kind = "vae_latent"

    def __init__(self, vae: Any, *, size: int, name: str, weights_tag: str, weights_sha256: str) -> None:
        """Wrap an `AutoencoderKL`.

        Args:
            vae: The autoencoder, eval mode.
            size: Height and width pictures are resized to, pixels.
            name: What the header calls the model.
            weights_tag: Which weights.
            weights_sha256: Hash of the weight file.

        Raises:
            ConfigError: `size` is no multiple of the autoencoder's reduction.
        """
        reduction = 2 ** (len(vae.config.block_out_channels) - 1)
        if size < reduction or size % reduction:
            raise ConfigError(f"the VAE's size is {size} pixels; it must be a multiple of {reduction}.")
        self.vae, self.size = vae, size
        self.shape = (int(vae.config.latent_channels), size // reduction, size // reduction)
        self.scaling_factor = float(vae.config.scaling_factor)
        self._header = {"model": name, "weights_tag": weights_tag, "weights_sha256": weights_sha256}

    def to(self, device: Any) -> VaeLatents:
        """Move the network; returns itself."""
        self.vae.to(device)
        return self

    def header(self) -> dict[str, Any]:
        """Say what the latents are, for a target store."""
        return {
            **self._header,
            "layer": "posterior mean x scaling_factor",
            "transform": f"bilinear to {self.size} px, [-1, 1]",
            "dim": int(self.shape[0] * self.shape[1] * self.shape[2]),
            "scaling_factor": self.scaling_factor,
        }

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Encode PIL pictures; (n, 4, h, w) float32, scaled, deterministic (the posterior's mean, not a sample)."""
        import numpy as np
        import torch
        from PIL import Image

        resized = [p.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR) for p in pictures]
        arrays = np.stack([np.asarray(picture, dtype=np.float32) for picture in resized])
        pixels = torch.from_numpy(arrays / 127.5 - 1).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
            return (posterior.mode() * self.scaling_factor).float().cpu().numpy()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (b, 4, h, w) to pictures (b, 3, size, size) about [0, 1], with gradient.

        Not clamped: a loss on pictures needs a gradient where they leave [0, 1].
        """
        return self.vae.decode(latents / self.scaling_factor).sample / 2 + 0.5


def load_vae(base: str = "pocket", size: int = 64) -> VaeLatents:
    """Load the autoencoder of an SDXL pipeline folder.

    Args:
        base: "pocket" (ships with the package), a `StableDiffusionXLPipeline` folder, or a Hugging Face repository that
            was fetched before, such as "stabilityai/sdxl-turbo".
        size: Height and width pictures are resized to, pixels.

    Raises:
        DataError: The weights are not there.
        ConfigError: `size` does not fit.
    """
    import torch
    from diffusers import AutoencoderKL

    weights = vae_file(base)
    if weights is None or not weights.is_file():
        named = base if weights is None else REPOSITORIES.get(Path(base).name, "OWNER/NAME")
        where = "" if weights is None else f" --local-dir {base}"
        fetch = f"fetch it with `hf download {named} vae/config.json vae/{WEIGHTS}{where}` or name another `base`"
        raise DataError(
            f"no autoencoder at {weights or base}; {'run `make pocket-weights`' if base == 'pocket' else fetch}."
        )
    folder = weights.parent.parent
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=torch.float32, local_files_only=True)
    sha256 = sha256_file(weights)
    name = "pocket_sdxl_vae" if base == "pocket" else Path(base).name
    vae = vae.eval().requires_grad_(False)
    return VaeLatents(vae, size=size, name=name, weights_tag=f"{name}-{sha256[:8]}", weights_sha256=sha256)


def vae_file(base: str) -> Path | None:
    """The weight file that `load_vae` would read; None for a repository that was not fetched."""
    folder = POCKET_DIRECTORY if base == "pocket" else Path(base)
    if folder.is_dir() or base.count("/") != 1:
        return folder / "vae" / WEIGHTS
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(base, f"vae/{WEIGHTS}")
    return Path(found) if isinstance(found, str) else None
