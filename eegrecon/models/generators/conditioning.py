"""Whether a generator was made for the embeddings and latents it is to be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eegrecon.artifacts import sha256_file


def mismatches(generator: Any, interface: Mapping[str, Any]) -> list[str]:
    """What a generator's conditioning and a target space disagree in, one phrase each.

    Args:
        generator: Has `dim` and `conditioning` (keys as in a target store's interface, {} if it does not say).
        interface: The target space, as far as it is known.
    """
    says = {"dim": generator.dim, **generator.conditioning}
    return [
        f"{name} is {says[name]!r} in the generator and {interface[name]!r} in the target"
        for name in ("model", "weights_tag", "dim", "normalised")
        if name in says and name in interface and says[name] != interface[name]
    ]


def latent_mismatches(generator: Any, header: Mapping[str, Any]) -> list[str]:
    """What a generator and a store of latents disagree in, one phrase each.

    Latents belong to the autoencoder that made them: another one reads them as something else, without an error.

    Args:
        generator: Has `latent_shape`, `scaling_factor` and `vae_weights` (`SDXLGenerator`).
        header: Of the target store that the latents were learned from.
    """
    says = {"kind": "vae_latent", "scaling_factor": generator.scaling_factor}
    wrong = [
        f"{name} is {value!r} in the generator and {header.get(name)!r} in the latents"
        for name, value in says.items()
        if header.get(name) != value
    ]
    channels, height, width = generator.latent_shape
    if (dim := header.get("dim")) is not None and dim != channels * height * width:
        wrong.append(f"one latent has {channels * height * width} numbers in the generator and {dim} in the latents")
    # Only the file of full precision is compared: a repository's fp16 variant is the same network in other bytes.
    known = header.get("weights_sha256")
    if not wrong and known and generator.vae_weights.is_file() and sha256_file(generator.vae_weights) != known:
        wrong.append(
            f"the autoencoder {generator.vae_weights} has other weights than {header.get('model')!r} that made the "
            "latents"
        )
    return wrong
