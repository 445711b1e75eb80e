"""How many pictures are made together: as many as fit into memory, by an estimate; and what to say if they did not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from eegrecon.data.memory import free_bytes
from eegrecon.errors import ConfigError

SHARE = 0.8  # of what is free; allocators waste some, and others may want some
MOST = 64  # more at a time makes no picture faster
# Live values for each (channel, place) of the UNet's levels in one forward pass (skip connections, upper blocks that
# are three times as wide, gated feed-forwards that are eight times), and of the autoencoder's second level at full
# size. `benchmarks/generator.py` prints the sum beside what was taken.
UNET_VALUES, VAE_VALUES = 32, 8


def fitting_batch(generator: Any, device: torch.device, *, processes: int = 1) -> int:
    """How many pictures fit into the free memory of a device, from 1 to `MOST`.

    An estimate: the parameters that are not on the device yet, and the activations of the UNet or of the autoencoder,
    whichever takes more (they come after each other).

    Args:
        generator: An `SDXLGenerator`; of any other kind, 1.
        device: Where it will run.
        processes: That share this memory.
    """
    if not hasattr(generator, "decoded_together"):
        return 1
    missing = sum(
        parameter.numel() * parameter.element_size()
        for parameter in generator.parameters()
        if parameter.device.type != device.type
    )
    left = SHARE * free_bytes(device) / processes - missing
    return next((size for size in range(MOST, 1, -1) if activation_bytes(generator, size) <= left), 1)


def activation_bytes(generator: Any, size: int) -> int:
    """Estimated peak memory of making `size` pictures with an `SDXLGenerator`, bytes, without its parameters."""
    _, height, width = generator.latent_shape
    channels = generator.unet.config.block_out_channels
    values = sum(wide * (height >> level) * (width >> level) for level, wide in enumerate(channels))
    passes = 2 if generator.guidance_scale > 1 else 1  # with and without the condition, together
    unet = UNET_VALUES * values * passes * _element(generator.unet) * size
    wide = generator.vae.config.block_out_channels[:2][-1]
    vae = VAE_VALUES * wide * generator.size**2 * _element(generator.vae) * min(size, generator.decoded_together)
    return max(unet, vae)


def _element(network: Any) -> int:
    return torch.empty((), dtype=network.dtype).element_size()


def half_of(size: int, smaller: str, else_: str) -> str:
    """What to try after `size` pictures did not fit.

    >>> half_of(8, "batch_size={}", "smaller pictures"), half_of(1, "batch_size={}", "smaller pictures")
    ('batch_size=4', 'smaller pictures')
    """
    return smaller.format(size // 2) if size > 1 else else_


@contextmanager
def enough_memory(advice: str, what: str) -> Iterator[None]:
    """Say in one sentence that memory ran out, on a GPU or here.

    Args:
        advice: What to try.
        what: What did not fit.

    Raises:
        ConfigError: It ran out; other errors pass.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # an OutOfMemoryError is a RuntimeError; the CPU's has no own kind
        words = str(error).lower()
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(
            said in words for said in ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
        ):
            raise
        raise ConfigError(f"There is not enough memory for {what}: try {advice}.") from error
