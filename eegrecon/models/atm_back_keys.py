"""What all official ATM-S encoders have behind their attention: convolution, projection, temperature; and their names.

Official features reach the projection with positions outermost, ours with filters outermost: its columns are sorted.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FILTERS, TAPS, POOL, STRIDE = 40, 25, 51, 5
CONV = "enc_eeg.0."
KERNEL, PROJECTION = f"{CONV}tsconv.4.weight", "proj_eeg.0.weight"  # whose shapes say how many channels and numbers
INWARD = "encoder.head.inward.weight"

# Official prefix to ours; what follows the prefix (weight, bias, …) stays.
BACK = {
    "logit_scale": "logit_scale",
    f"{CONV}tsconv.": "encoder.conv.tsconv.",
    f"{CONV}projection.0.": "encoder.conv.projection.",
    "proj_eeg.0.": "encoder.head.inward.",
    "proj_eeg.1.fn.1.": "encoder.head.residual.",
    "proj_eeg.2.": "encoder.head.norm.",
}
Shapes = dict[str, tuple[int, ...]]


def affine(prefix: str, *shape: int) -> Shapes:
    """A weight of this shape and its bias."""
    return {f"{prefix}weight": shape, f"{prefix}bias": shape[:1]}


def back_shapes(n_chans: int, n_times: int, dim: int) -> Shapes:
    """Every official key behind the attention but `logit_scale`, with its shape, in the official order."""
    n_out = (n_times - (TAPS - 1) - POOL) // STRIDE + 1

    def norm(prefix: str) -> Shapes:
        both = {f"{prefix}running_{name}": (FILTERS,) for name in ("mean", "var")}
        return {**affine(prefix, FILTERS), **both, f"{prefix}num_batches_tracked": ()}

    shapes = affine(f"{CONV}tsconv.0.", FILTERS, 1, 1, TAPS) | norm(f"{CONV}tsconv.2.")
    shapes |= affine(f"{CONV}tsconv.4.", FILTERS, FILTERS, n_chans, 1) | norm(f"{CONV}tsconv.5.")
    shapes |= affine(f"{CONV}projection.0.", FILTERS, FILTERS, 1, 1)
    shapes |= affine("proj_eeg.0.", dim, FILTERS * n_out) | affine("proj_eeg.1.fn.1.", dim, dim)
    return shapes | affine("proj_eeg.2.", dim)


def inward(official: Mapping[str, Tensor]) -> Tensor:
    """The projection's weight with its columns in our order, float32."""
    weight = official[PROJECTION].float()
    return weight.unflatten(1, (weight.shape[1] // FILTERS, FILTERS)).transpose(1, 2).flatten(1)


def plain_input(n_chans: int) -> dict[str, Tensor]:
    """EEG enters an official encoder as it is: mean 0, deviation 1."""
    return {"channel_mean": torch.zeros(n_chans), "channel_std": torch.ones(n_chans)}


def to_official(
    state: Mapping[str, Tensor],
    prefixes: Mapping[str, str],
    shapes: Shapes,
    made: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Every official key: from `made`, else from our state by its prefix, else from `rest`, else zeros."""
    official = {}
    for key, shape in shapes.items():
        ours = our_key(key, prefixes)
        if key in made:
            value = made[key]
        elif ours is None:
            value = rest.get(key, torch.zeros(shape))
        elif ours == INWARD:
            value = state[ours].unflatten(1, (FILTERS, -1)).transpose(1, 2).flatten(1)
        else:
            value = state[ours].reshape(shape)
        official[key] = value.detach().clone().contiguous()
    return official


def our_key(key: str, prefixes: Mapping[str, str]) -> str | None:
    """Our name of an official key; None if it has none."""
    return next((new + key.removeprefix(old) for old, new in prefixes.items() if key.startswith(old)), None)
