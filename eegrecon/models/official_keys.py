"""What foreign checkpoints have in common: recognising them, checking every key at once, renaming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eegrecon.errors import DataError

MOST_KEYS = 12  # shown of each kind; the rest is counted


@dataclass(frozen=True)
class Renamed:
    """A foreign checkpoint as ours: our state dict, the network's `args`, the data's facts, and what found no place."""

    state: dict[str, Tensor]
    args: dict[str, Any]
    facts: dict[str, int]
    rest: dict[str, Tensor] = field(default_factory=dict)


def unwrapped(content: Any, where: str) -> dict[str, Tensor]:
    """The state dict in what a file holds: it, or an only entry such as `state_dict`; `module.` prefixes go.

    Raises:
        DataError: It holds no state dict.
    """
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise DataError(f"{where} holds {_describe(content)}, expected a state dict (names to tensors) of ATM's code.")
    odd = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise DataError(f"{where} must hold tensors by name, but these are none: {_listed(odd)}.")
    state = {str(key): value for key, value in content.items()}
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):  # torch.compile, DataParallel, in either order
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def kind_of(state: Mapping[str, Tensor], where: str) -> str:
    """Whose weights these are: "encoder" (ATM-S of main), "april" (ATM-S of April 2024) or "prior".

    Raises:
        DataError: Another network's; says which, where it can be told.
    """

    def any_key(*parts: str) -> bool:
        return any(part in key for key in state for part in parts)

    linear, joint = "encoder.enc_embedding.value_embedding.weight", "encoder.enc_embedding.value_embedding.0."
    if any_key(joint):
        other = "the ATM-S of the joint script, with a value layer for each subject"
    elif linear in state or any_key("encoder.enc_embedding."):
        return "encoder"
    elif any_key("encode_cond_embedding.", "decode_layers."):
        return "prior"
    elif any_key("attention_model.transformer_encoder.") and any_key("enc_eeg.0.tsconv."):
        return "april"
    elif any_key("self_attn.in_proj_weight"):
        conv = "ATM-E" if any_key("conv_temporal") else "another ATM"
        other = f"{conv} with attention over time"
    elif any_key("tsconv."):
        other = "NICE, or another network with its convolution"
    elif any_key("image_projection", "to_k_ip"):
        other = "an IP-Adapter"
    else:
        other = f"a network that eegrecon does not know ({_listed(list(state), 3)})"
    raise DataError(
        f"{where} holds {other}: only the ATM-S encoders of main (ATMS_retrieval.py, ATMS_reconstruction.py) and of "
        "April 2024 (ATM_S_insubject_retrieval.py) and the diffusion prior can be imported."
    )


def check_keys(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], where: str, what: str) -> None:
    """Compare names and shapes.

    Raises:
        DataError: Lists every key that is missing, unknown or of another shape.
    """
    problems = []
    if missing := [key for key in wanted if key not in state]:
        problems.append(f"missing: {_listed(missing)}")
    if unknown := [key for key in state if key not in wanted]:
        problems.append(f"unknown: {_listed(unknown)}")
    wrong = [
        f"{key} is {tuple(state[key].shape)} and should be {shape}"
        for key, shape in wanted.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if wrong:
        problems.append(_listed(wrong))
    if problems:
        raise DataError(f"{where} is not {what}: {'; '.join(problems)}.")
    broken = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise DataError(f"{where} holds NaN or infinite weights in {_listed(broken)}: take another checkpoint.")


def size_of(state: Mapping[str, Tensor], key: str, axis: int, default: int) -> int:
    """The length of one tensor's axis; `default` where there is none, so that `check_keys` can name what is missing."""
    value = state.get(key)
    return value.shape[axis] if value is not None and value.ndim > axis else default


def renamed(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Give every key that begins with one of `prefixes` the prefix's new form; floats become float32, others go."""
    found = {}
    for key, value in state.items():
        for old, new in prefixes.items():
            if key.startswith(old):
                found[new + key.removeprefix(old)] = value.float() if value.is_floating_point() else value
                break
    return found


def _listed(names: list[str], most: int = MOST_KEYS) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _describe(content: Any) -> str:
    return f"a tensor of shape {tuple(content.shape)}" if isinstance(content, Tensor) else f"a {type(content).__name__}"
