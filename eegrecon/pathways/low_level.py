"""Latents from EEG, to start an img2img from: of the low-level network, or of the encoder's latent head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eegrecon.artifacts import Manifest, sha256_file
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.loading import load_stage
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.models.generators.latents import vae_file

SOURCES = {"low_level": "train-low-level", "head": "train-encoder"}
FOLDERS = {"low_level": "low_level", "head": "encoder"}
_ROWS = 256  # trials at once


@dataclass(frozen=True)
class LatentSource:
    """A finished stage that turns EEG into latents.

    Attributes:
        directory: The stage's.
        manifest: Its own; `data` says which trials it takes (channels, window, unit).
        interface: Whose latents it predicts (`TargetStore.latent_interface`).
        network: `LowLevelDecoder`, or the `AlignedEncoder` with its latent head.
    """

    directory: Path
    manifest: Manifest
    interface: dict[str, Any]
    network: nn.Module

    @torch.inference_mode()
    def predict(self, eeg: Tensor, subject: Tensor) -> Tensor:
        """EEG (n, n_chans, n_times) in the store's unit, subject (n,) int -> scaled latents (n, c, h, w) on the CPU."""
        device = next(self.network.buffers()).device
        parts = []
        for rows, who in zip(eeg.split(_ROWS), subject.split(_ROWS), strict=True):
            out = self.network(rows.to(device), who.to(device))
            if isinstance(self.network, AlignedEncoder):
                assert self.network.latent_head is not None
                out = self.network.latent_head(out)
            parts.append(out.float().cpu())
        return torch.cat(parts)


def open_latents(run_dir: Path, source: str, device: str = "cpu") -> LatentSource:
    """What predicts latents in a run.

    Args:
        run_dir: The run's directory, with `low_level/` or `encoder/` in it.
        source: "low_level" (the network of train-low-level) or "head" (the latent head of train-encoder).
        device: A torch device.

    Raises:
        ArtifactError: The stage is unfinished or was tampered with, or the encoder has no latent head.
        ConfigError: An unknown source.
    """
    if source not in SOURCES:
        raise ConfigError(f"The source of latents is {source!r}, expected one of {', '.join(SOURCES)}.")
    directory = Path(run_dir) / FOLDERS[source]
    loaded = load_stage(directory, device)
    if loaded.manifest.stage != SOURCES[source]:
        raise ArtifactError(
            f"{directory} was made by {loaded.manifest.stage}, but latents of the source {source!r} come from "
            f"{SOURCES[source]}: name another run."
        )
    interface = loaded.manifest.interface
    if source == "head":
        if getattr(loaded.network, "latent_head", None) is None:
            raise ArtifactError(
                f"The encoder in {directory} has no latent head: train it with latent_target.name and loss.vae_latent "
                "above 0, or take latents from train-low-level."
            )
        if "latent" not in interface:
            raise ArtifactError(
                f"The manifest of {directory} does not say whose latents its latent head predicts (it is of an earlier "
                "version): make it again with `eegrecon train-encoder … --overwrite`."
            )
        interface = interface["latent"]
    return LatentSource(directory, loaded.manifest, dict(interface), loaded.network)


def predicted_latents(run_dir: Path, source: str, eeg: Tensor, subject: Tensor) -> Tensor:
    """Latents (n, c, h, w) from EEG (n, n_chans, n_times), times the VAE's scaling_factor; see `open_latents`."""
    return open_latents(run_dir, source).predict(eeg, subject)


def check_latents(interface: Mapping[str, Any], where: Path | str, generator: Any, base: str) -> None:
    """Refuse latents of another VAE, or of another size, than the generator starts from.

    Args:
        interface: What the latents are (`LatentSource.interface`).
        where: What predicts them, for the message.
        generator: Has `vae` (diffusers' `AutoencoderKL`) and `size`, the side of its pictures in pixels.
        base: What the generator was loaded from (`generator.args.base`). A repository that keeps the VAE's weights
            under another name than diffusers' own has no hash to compare: then scaling_factor and shape must do.

    Raises:
        ArtifactError: Names every field that differs and both values.
    """
    wrong = differences(interface, generator.vae, base, size=generator.size)
    if wrong:
        raise ArtifactError(
            f"{where} predicts other latents than the generator {base!r} starts from: {'; '.join(wrong)}; train it on "
            "a latent_target of this generator's VAE at this size, or choose another generator."
        )


def differences(interface: Mapping[str, Any], vae: Any, base: str, size: int = 0) -> list[str]:
    """In words, what makes latents unfit for an autoencoder; [] if they fit.

    Args:
        interface: What the latents are.
        vae: diffusers' `AutoencoderKL`.
        base: What it was loaded from.
        size: Side of the pictures, pixels; 0: any.
    """
    reduction = 2 ** (len(vae.config.block_out_channels) - 1)
    wanted: dict[str, Any] = {"scaling_factor": float(vae.config.scaling_factor)}
    if size:
        wanted["shape"] = [int(vae.config.latent_channels), size // reduction, size // reduction]
    weights = vae_file(base)
    if weights is not None and weights.is_file():
        wanted["weights_sha256"] = sha256_file(weights)
    wrong = []
    for key, value in wanted.items():
        found = interface.get(key)
        same = abs(found - value) < 1e-6 if key == "scaling_factor" and found is not None else found == value
        if not same:
            wrong.append(f"{key} is {_short(found)} there and {_short(value)} here")
    return wrong


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)
