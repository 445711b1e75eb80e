"""The official diffusion prior's weights (EEG_Image_decode, main, commit 49cb3a2) in our `PriorUNet`, and back.

Names and shapes after facts/atm.md section 4 and the released checkpoints. Every weight has its place on both sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eegrecon.models.official_keys import Renamed, check_keys, renamed, size_of

HIDDEN, TIME = (1024, 512, 256, 128, 64), 512  # of the released checkpoints


def prior_shapes(dim: int, cond_dim: int, hidden: Sequence[int], time: int) -> dict[str, tuple[int, ...]]:
    """Every official key with its shape, in the official order."""
    pairs = list(itertools.pairwise(hidden))
    shapes: dict[str, tuple[int, ...]] = {}

    def affine(prefix: str, *shape: int) -> None:
        shapes.update({f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]})

    affine("input_layer.0", hidden[0], dim)
    affine("input_layer.1", hidden[0])
    for half, sides in (("encode", pairs), ("decode", [(b, a) for a, b in reversed(pairs)])):
        # Time and condition enter before the block: at its input's width when going down, and its input's going up.
        for level, (width, _) in enumerate(sides):
            affine(f"{half}_time_embedding.{level}.linear_1", width, time)
            affine(f"{half}_time_embedding.{level}.linear_2", width, width)
        for level, (width, _) in enumerate(sides):
            affine(f"{half}_cond_embedding.{level}", width, cond_dim)
        for level, (width, out) in enumerate(sides):
            affine(f"{half}_layers.{level}.0", out, width)
            affine(f"{half}_layers.{level}.1", out)
    affine("output_layer", dim, hidden[0])
    return shapes


def prior_prefixes(levels: int) -> dict[str, str]:
    """Official prefix to that of `ScaledPrior`; our blocks are counted through, down and up."""
    prefixes = {"input_layer.": "network.input.", "output_layer.": "network.output."}
    for half, first in (("encode", 0), ("decode", levels)):
        for level in range(levels):
            for theirs, ours in (("time_embedding", "time_embeds"), ("cond_embedding", "cond_embeds")):
                prefixes[f"{half}_{theirs}.{level}."] = f"network.{ours}.{first + level}."
            prefixes[f"{half}_layers.{level}."] = f"network.blocks.{first + level}."
    return prefixes


def from_official_prior(official: Mapping[str, Tensor], where: str) -> Renamed:
    """Turn an official prior's state into that of a `ScaledPrior` around `PriorUNet`, with both spaces unscaled.

    Raises:
        DataError: Lists every key that is missing, unknown or of another shape.
    """
    levels = len({key.split(".")[1] for key in official if key.startswith("encode_layers.")}) or len(HIDDEN) - 1
    plain = (*HIDDEN, *[HIDDEN[-1]] * levels)
    hidden = [size_of(official, "input_layer.0.weight", 0, HIDDEN[0])]
    hidden += [size_of(official, f"encode_layers.{level}.0.weight", 0, plain[level + 1]) for level in range(levels)]
    dim, cond_dim = (
        size_of(official, "input_layer.0.weight", 1, 1024),
        size_of(official, "encode_cond_embedding.0.weight", 1, 1024),
    )
    time = size_of(official, "encode_time_embedding.0.linear_1.weight", 1, TIME)
    check_keys(official, prior_shapes(dim, cond_dim, hidden, time), where, "the official diffusion prior")
    state = renamed(official, prior_prefixes(levels))
    for name, length in (("target", dim), ("cond", cond_dim)):
        state |= {f"{name}_mean": torch.zeros(length), f"{name}_scale": torch.ones(length)}
    state["cond_unit"] = torch.tensor(False)
    facts = {"dim": dim, "cond_dim": cond_dim}
    return Renamed(
        {key: value.contiguous() for key, value in state.items()}, {"hidden": hidden, "time_embed_dim": time}, facts
    )


def to_official_prior(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the state of a `ScaledPrior` into an official one; the condition's scaling goes into its linear maps.

    The caller has checked that targets are unscaled and conditions not divided by their length: for neither has the
    official module a place.
    """
    count = len({key.split(".")[2] for key in state if key.startswith("network.blocks.")})
    levels = count // 2
    hidden = [state[f"network.blocks.{level}.0.weight"].shape[1] for level in range(levels)]
    hidden.append(state[f"network.blocks.{levels}.0.weight"].shape[1])
    dim, cond_dim = state["network.output.weight"].shape[0], state["network.cond_embeds.0.weight"].shape[1]
    time = state["network.time_embeds.0.linear_1.weight"].shape[1]
    prefixes, official = prior_prefixes(levels), {}
    for key, shape in prior_shapes(dim, cond_dim, hidden, time).items():
        ours = next(new + key.removeprefix(old) for old, new in prefixes.items() if key.startswith(old))
        value = state[ours]
        if "cond_embedding" in key:
            weight = state[ours.rpartition(".")[0] + ".weight"].double() / state["cond_scale"].double()
            value = weight if key.endswith("weight") else value.double() - weight @ state["cond_mean"].double()
        official[key] = value.detach().float().reshape(shape).clone().contiguous()
    return official
