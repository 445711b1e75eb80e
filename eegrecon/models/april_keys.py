"""The ATM-S encoder of April 2024 (EEG_Image_decode@e0dfa58) in our `ATMS` with attention over time, and back.

Architecture after facts/atm.md section 2.2; names after `Retrieval/ATM_S_insubject_retrieval.py` of that time (8f4c5e5,
and the fork Alljoined/EEG_Image_decode@e5a04d8). Its forward adds sinusoids over time and applies the first of its
subject-wise linear maps, whoever the subject is. The layer that `nn.TransformerEncoder` was copied from is still in the
checkpoint and never called; that, further linear maps and positions past the trial's end are kept aside (`rest`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

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

POSITIONS = 5000
PE = "attention_model.pos_encoder.pe"
LAYER, DEAD = "attention_model.transformer_encoder.layers.0.", "attention_model.encoder_layer."
LINEAR = "subject_wise_linear.0."
OURS, OUR_POSITION, OUR_LINEAR = "encoder.time.layers.0.", "encoder.time.position", "encoder.subject_linear."
PREFIXES = {LAYER: OURS, LINEAR: OUR_LINEAR, **BACK}


def april_shapes(n_chans: int, n_times: int, dim: int, hidden: int, linears: int, positions: int) -> Shapes:
    """Every official key with its shape, in the official order."""
    shapes: Shapes = {"logit_scale": (), PE: (positions, n_chans)}
    for prefix in (DEAD, LAYER):
        shapes |= {
            f"{prefix}self_attn.in_proj_weight": (3 * n_chans, n_chans),
            f"{prefix}self_attn.in_proj_bias": (3 * n_chans,),
        }
        shapes |= affine(f"{prefix}self_attn.out_proj.", n_chans, n_chans)
        shapes |= affine(f"{prefix}linear1.", hidden, n_chans) | affine(f"{prefix}linear2.", n_chans, hidden)
        shapes |= affine(f"{prefix}norm1.", n_chans) | affine(f"{prefix}norm2.", n_chans)
    for number in range(linears):
        shapes |= affine(f"subject_wise_linear.{number}.", n_times, n_times)
    return shapes | back_shapes(n_chans, n_times, dim)


def from_official_april(official: Mapping[str, Tensor], where: str) -> Renamed:
    """Turn an encoder's state of April 2024 into that of an `AlignedEncoder` around `ATMS`.

    Raises:
        DataError: Lists every key that is missing, unknown or of another shape.
    """
    n_chans, dim = size_of(official, KERNEL, 2, 63), size_of(official, PROJECTION, 0, 1024)
    n_times, hidden = size_of(official, f"{LINEAR}weight", 0, 250), size_of(official, f"{LAYER}linear1.weight", 0, 2048)
    linears = len({key.split(".")[1] for key in official if key.startswith("subject_wise_linear.")}) or 1
    shapes = april_shapes(n_chans, n_times, dim, hidden, linears, size_of(official, PE, 0, POSITIONS))
    check_keys(official, shapes, where, "the official ATM-S encoder of April 2024")
    state = renamed(official, PREFIXES) | plain_input(n_chans)
    state |= {INWARD: inward(official), OUR_POSITION: official[PE][:n_times].float()}
    args = {"attention_axis": "time", "position": "sinusoidal", "subject_token": "none"}
    facts = {"n_chans": n_chans, "n_times": n_times, "dim": dim}
    rest = {key: value for key, value in official.items() if not key.startswith(tuple(PREFIXES))}
    return Renamed(
        {key: value.contiguous() for key, value in state.items()},
        {**args, "subject_linear": True, "hidden": hidden},
        facts,
        rest,
    )


def to_official_april(state: Mapping[str, Tensor], rest: Mapping[str, Tensor], n_times: int) -> dict[str, Tensor]:
    """Turn the state of an `AlignedEncoder` around a fitting `ATMS` into an official one.

    That module always adds its table and applies its linear map: a network of ours without positions gets a table of
    zeros, one without the map the identity.

    Args:
        state: Ours; the caller has checked that the official module can compute what it does.
        rest: What `from_official_april` put aside, or nothing: then what is never called is zero.
        n_times: Samples of a trial.
    """
    n_chans, dim = state[str(our_key(KERNEL, PREFIXES))].shape[2], state[INWARD].shape[0]
    hidden, positions = state[f"{OURS}linear1.weight"].shape[0], rest[PE].shape[0] if rest else POSITIONS
    linears = {key.split(".")[1] for key in (*rest, LINEAR) if key.startswith("subject_wise_linear.")}
    shapes = april_shapes(n_chans, n_times, dim, hidden, len(linears), positions)
    made = {PE: torch.zeros(positions, n_chans)}
    if (own := state.get(OUR_POSITION)) is not None:
        made[PE] = rest[PE].clone() if rest else sinusoids(positions, n_chans)
        made[PE][:n_times] = own
    if f"{OUR_LINEAR}weight" not in state:
        made |= {f"{LINEAR}weight": torch.eye(n_times), f"{LINEAR}bias": torch.zeros(n_times)}
    return to_official(state, PREFIXES, shapes, made, rest)
