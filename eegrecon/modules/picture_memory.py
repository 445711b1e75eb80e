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
# Live values of one forward pass for each (channel, place) of the UNet's levels: skip connections, the widened input of
# the upper blocks (three times its output), attention's queries and keys, the gated feed-forward (8 times).
# `benchmarks/generator.py` prints this estimate beside what a picture took.
UNET_VALUES = 12


def fitting_batch(generator: Any, device: torch.device, *, processes: int = 1) -> int:
    """How many pictures fit into the free memory of a device, from 1 to `MOST`.

    An estimate: the parameters that are not on the device yet, and the UNet's activations of one picture (two with
    classifier-free guidance). Decoding does not count: it takes few pictures at a time whatever the batch.

    Args:
        generator: With `unet`, `size` and `guidance_scale` (`SDXLGenerator`); of any other, 1.
        device: Where it will run.
        processes: That share this memory.
    """
    if not all(hasattr(generator, name) for name in ("unet", "size", "guidance_scale", "latent_shape")):
        return 1
    missing = sum(
        parameter.numel() * parameter.element_size()
        for parameter in generator.parameters()
        if parameter.device.type != device.type
    )
    left = SHARE * free_bytes(device) / processes - missing
    return int(min(MOST, max(1, left // bytes_per_picture(generator))))


def bytes_per_picture(generator: Any) -> int:
    """Estimated memory of one picture in the UNet of an `SDXLGenerator`, bytes."""
    config = generator.unet.config
    _, height, width = generator.latent_shape
    values = sum(
        channels * (height >> level) * (width >> level) for level, channels in enumerate(config.block_out_channels)
    )
    element = torch.empty((), dtype=generator.unet.dtype).element_size()
    return max(1, UNET_VALUES * values * element * (2 if generator.guidance_scale > 1 else 1))


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
            said in words for said in ("out of memory", "not enough memory", "can't allocate memory")
        ):
            raise
        raise ConfigError(f"There is not enough memory for {what}: try {advice}.") from error
