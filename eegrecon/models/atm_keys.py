"""The official ATM-S encoder's weights (EEG_Image_decode, main, commit 49cb3a2) in our `ATMS`, and back.

Names and shapes after facts/atm.md section 2.1 and the released checkpoints. The official table of subjects has a row
for each id from 0, and one shared row for all ids beyond it. Its row 0 belongs to nobody (ids start at 1). Ours has the
shared row in place 0, which every unknown subject takes.

What the official forward never reads is kept aside (`rest`), so that a checkpoint comes back bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eegrecon.errors import ConfigError
from eegrecon.models.atm_back_keys import (
    BACK,
    INWARD,
    KERNEL,
    PROJECTION,
    Shapes,
    affine,
    back_shapes,
    inward,
    our_key,
    plain_input,
    to_official,
)
from eegrecon.models.encoders.atm_attention import sinusoids
from eegrecon.models.official_keys import Renamed, check_keys, renamed, size_of

HEADS = 4  # not to be read from the weights
ROWS, LINEARS, POSITIONS = 10, 2, 5000  # of the released checkpoints

_EMBEDDING, _LAYER = "encoder.enc_embedding.", "encoder.encoder.attn_layers.0."
_TABLE = f"{_EMBEDDING}subject_embedding."
SHARED, TOKENS = f"{_TABLE}shared_embedding", f"{_TABLE}subject_embedding.weight"
PE = f"{_EMBEDDING}position_embedding.pe"

# Official prefix to ours; what follows the prefix (weight, bias, …) stays.
PREFIXES = {
    f"{_EMBEDDING}value_embedding.": "encoder.tokens.value.",
    **{
        f"{_LAYER}attention.{name}_projection.": f"encoder.layers.0.{name}."
        for name in ("query", "key", "value", "out")
    },
    f"{_LAYER}conv1.": "encoder.layers.0.expand.",
    f"{_LAYER}conv2.": "encoder.layers.0.contract.",
    f"{_LAYER}norm1.": "encoder.layers.0.norm1.",
    f"{_LAYER}norm2.": "encoder.layers.0.norm2.",
    "encoder.encoder.norm.": "encoder.norm.",
    **BACK,
}
_KERNELS = (f"{_LAYER}conv1.weight", f"{_LAYER}conv2.weight")  # 1x1 convolutions there, linear maps here


@dataclass(frozen=True)
class EncoderSizes:
    """What an official checkpoint's shapes say."""

    n_chans: int
    n_times: int
    dim: int
    hidden: int
    rows: int = ROWS
    linears: int = LINEARS
    positions: int = POSITIONS


def encoder_shapes(sizes: EncoderSizes) -> Shapes:
    """Every official key with its shape, in the official order."""
    times, inner = sizes.n_times, sizes.n_times // HEADS * HEADS
    shapes: Shapes = {"logit_scale": (), f"{_EMBEDDING}mask_token": (1, times)}
    shapes |= affine(f"{_EMBEDDING}value_embedding.", times, times)
    shapes |= {PE: (1, sizes.positions, times), f"{_EMBEDDING}temporal_embedding.embed.weight": (times, 4)}
    shapes |= {SHARED: (1, times), f"{_TABLE}mask_embedding": (1, times), TOKENS: (sizes.rows, times)}
    for name in ("query", "key", "value"):
        shapes |= affine(f"{_LAYER}attention.{name}_projection.", inner, times)
    shapes |= affine(f"{_LAYER}attention.out_projection.", times, inner)
    shapes |= affine(f"{_LAYER}conv1.", sizes.hidden, times, 1) | affine(f"{_LAYER}conv2.", times, sizes.hidden, 1)
    shapes |= (
        affine(f"{_LAYER}norm1.", times) | affine(f"{_LAYER}norm2.", times) | affine("encoder.encoder.norm.", times)
    )
    for number in range(sizes.linears):
        shapes |= affine(f"subject_wise_linear.{number}.", times, times)
    return shapes | back_shapes(sizes.n_chans, times, sizes.dim)


def encoder_sizes(official: Mapping[str, Tensor], where: str) -> EncoderSizes:
    """Read the sizes of an official encoder and check every key and shape against them.

    Raises:
        DataError: Lists every key that is missing, unknown or of another shape.
    """
    plain = EncoderSizes(63, 250, 1024, 256)
    linears = {key.split(".")[1] for key in official if key.startswith("subject_wise_linear.")}
    sizes = EncoderSizes(
        n_chans=size_of(official, KERNEL, 2, plain.n_chans),
        n_times=size_of(official, f"{_EMBEDDING}value_embedding.weight", 0, plain.n_times),
        dim=size_of(official, PROJECTION, 0, plain.dim),
        hidden=size_of(official, f"{_LAYER}conv1.weight", 0, plain.hidden),
        rows=size_of(official, TOKENS, 0, plain.rows),
        linears=len(linears) or LINEARS,
        positions=size_of(official, PE, 1, plain.positions),
    )
    check_keys(official, encoder_shapes(sizes), where, "the official ATM-S encoder")
    return sizes


def from_official_encoder(official: Mapping[str, Tensor], where: str, position: str, token_slice: str) -> Renamed:
    """Turn an official encoder's state into that of an `AlignedEncoder` around `ATMS`.

    Args:
        official: State dict of the official module.
        where: The file, for errors.
        position: "sinusoidal" for checkpoints trained with main since 2025-12-24, "none" for earlier ones (whose code
            held positions and never added them).
        token_slice: "official", or "all" for those of the develop branch.

    Returns:
        Our state (EEG enters as it is: mean 0, deviation 1), `ATMS`'s arguments, and what the network does not have.

    Raises:
        DataError: Lists every key that is missing, unknown or of another shape.
    """
    sizes = encoder_sizes(official, where)
    state = renamed(official, PREFIXES)
    for key in _KERNELS:
        state[str(our_key(key, PREFIXES))] = official[key][:, :, 0].float()
    state |= {INWARD: inward(official), **plain_input(sizes.n_chans)}
    state["encoder.tokens.subject.weight"] = torch.cat([official[SHARED], official[TOKENS][1:]]).float()
    if position == "sinusoidal":
        state["encoder.tokens.position"] = official[PE][0, : sizes.n_chans].float()
    args: dict[str, Any] = {"attention_axis": "channel", "position": position, "subject_token": "per_subject"}
    args |= {"token_slice": token_slice, "n_subjects": sizes.rows - 1, "hidden": sizes.hidden}
    taken = (SHARED, *PREFIXES)
    rest = {key: value for key, value in official.items() if not key.startswith(taken)}
    rest[TOKENS] = official[TOKENS][:1]
    facts = {"n_chans": sizes.n_chans, "n_times": sizes.n_times, "dim": sizes.dim}
    return Renamed({key: value.contiguous() for key, value in state.items()}, args, facts, rest)


def to_official_encoder(state: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Turn the state of an `AlignedEncoder` around a fitting `ATMS` into an official one.

    Every id from 1 gets the token that our network gives it: subjects that were not trained on get the shared one.

    Args:
        state: Ours; the caller has checked that the official module can compute what it does.
        rest: What `from_official_encoder` put aside, or nothing: then these are zeros, and the fixed positions.

    Returns:
        The official state dict, and what a reader should know.

    Raises:
        ConfigError: Several subjects would have to share the official module's one token for ids beyond its table.
    """
    n_times, dim = state["encoder.tokens.value.weight"].shape[0], state[INWARD].shape[0]
    linears = {key.split(".")[1] for key in rest if key.startswith("subject_wise_linear.")}
    table = state["encoder.tokens.subject.weight"]
    sizes = EncoderSizes(
        n_chans=state["encoder.conv.tsconv.4.weight"].shape[2],
        n_times=n_times,
        dim=dim,
        hidden=state["encoder.layers.0.expand.weight"].shape[0],
        rows=len(table) if rest else ROWS,
        linears=len(linears) or LINEARS,
        positions=rest[PE].shape[1] if rest else POSITIONS,
    )
    tokens, shared, notes = _tokens(table, state.get("known_subjects"), sizes.rows)
    tokens[0] = rest[TOKENS][0] if rest else 0.0
    made = {SHARED: shared, TOKENS: tokens, PE: _positions(state, rest, sizes)}
    return to_official(state, PREFIXES, encoder_shapes(sizes), made, rest), notes


def _tokens(table: Tensor, known: Tensor | None, rows: int) -> tuple[Tensor, Tensor, list[str]]:
    """The official table and shared row that give every id from 1 the token it has here."""

    def own(subject: int) -> bool:
        return 0 < subject < len(table) and (known is None or subject in known.tolist())

    tokens = torch.stack([table[subject if own(subject) else 0] for subject in range(rows)])
    beyond = [subject for subject in range(rows, len(table)) if own(subject)]
    if len(beyond) > 1:
        raise ConfigError(
            f"Subjects {', '.join(map(str, beyond))} have tokens of their own, but the official module has one token "
            f"for all ids from {rows} on: train with encoder.args.n_subjects={rows} at most."
        )
    notes = []
    if beyond:
        notes.append(f"the token of subject {beyond[0]} is the official one of all ids from {rows} on")
    return tokens, table[beyond[0] if beyond else 0][None], notes


def _positions(state: Mapping[str, Tensor], rest: Mapping[str, Tensor], sizes: EncoderSizes) -> Tensor:
    """The official table of positions; a learned one of ours takes its first places."""
    pe = rest[PE].clone() if rest else sinusoids(sizes.positions, sizes.n_times)[None]
    if (own := state.get("encoder.tokens.position")) is not None:
        pe[0, : sizes.n_chans] = own
    return pe
