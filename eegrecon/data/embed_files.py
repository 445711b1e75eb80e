"""Embeddings as other projects keep them: one matrix in a `.npy`, `.safetensors` or `.pt` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eegrecon.data.feature_files import read_tensors
from eegrecon.errors import DataError

# What a dict's entry is called, by what it is taken for: ours first, then the published feature files'.
NAMES = {
    "eeg": ("eeg_embeds", "eeg_features"),
    "image": ("image_embeds", "img_features", "image_features"),
    "text": ("text_embeds", "text_features"),
    "index": ("image_index",),
}
ENDINGS = (".npy", ".safetensors", ".pt", ".pth")


def read_matrix(path: Path, role: str) -> tuple[np.ndarray, str]:
    """Read one embedding matrix.

    A bare array or tensor, or a dict: of its entries the one that is named as `NAMES[role]` says, else the only one
    that is a matrix.

    Args:
        path: `.npy`, `.safetensors`, `.pt` or `.pth`; nothing in it is executed.
        role: `eeg`, `image` or `text`.

    Returns:
        (n, dim) float32, and the name of the entry that was taken ("" for a bare array).

    Raises:
        DataError: The file is missing or unreadable, holds no or several fitting matrices, or the matrix is empty or
            not finite.
    """
    values, name = _pick(path, role, lambda array: array.ndim == 2 and array.dtype.kind == "f", "a matrix of numbers")
    if not values.size:
        raise DataError(f"{_where(path, name)} is empty, {values.shape}: expected a row an embedding.")
    matrix = np.asarray(values, dtype=np.float32)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{_where(path, name)} holds NaN or infinite values in {int((~finite).sum())} of {len(matrix)} rows, first "
            f"in row {int(np.argmin(finite))}: make these embeddings again."
        )
    if not (length := np.linalg.norm(matrix.astype(np.float64), axis=1)).all():
        raise DataError(f"Row {int(np.argmin(length))} of {_where(path, name)} is zero, which has no direction.")
    return matrix, name


def read_index(path: Path) -> np.ndarray:
    """Read which picture each EEG row saw, (q,) int64, as rows of the image embeddings.

    Raises:
        DataError: The file is missing or unreadable, or holds no vector of whole numbers.
    """
    values, _ = _pick(path, "index", lambda array: array.ndim == 1 and array.dtype.kind in "iu", "whole numbers")
    return np.asarray(values, dtype=np.int64)


def _pick(path: Path, role: str, fits: Any, wanted: str) -> tuple[np.ndarray, str]:
    content = _read(path)
    if not isinstance(content, Mapping):
        array = _array(content)
        if array is None or not fits(array):
            found = type(content).__name__ if array is None else f"{array.dtype} of shape {array.shape}"
            shape = "one number a row" if role == "index" else "a row an embedding"
            raise DataError(f"{path} must hold {wanted}, {shape}, but it holds {found}.")
        return array, ""
    arrays = {str(name): array for name, value in content.items() if (array := _array(value)) is not None}
    for name in NAMES[role]:
        if name in arrays and fits(arrays[name]):
            return arrays[name], name
    fitting = [name for name, array in arrays.items() if fits(array)]
    if len(fitting) == 1:
        return arrays[fitting[0]], fitting[0]
    held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing that is an array"
    what = f"several that could be ({', '.join(fitting)})" if fitting else f"none that is {wanted}"
    raise DataError(
        f"{path} must hold {' or '.join(NAMES[role])}, or {wanted} alone, but it holds {what}; all in it: {held}: save "
        "the one you mean in a file of its own."
    )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"The file {path} does not exist: give a {', '.join(ENDINGS)} file.")
    if path.suffix not in ENDINGS:
        raise DataError(f"{path} is none of the kinds that are read here ({', '.join(ENDINGS)}): save it as one.")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
    except Exception as error:  # numpy and safetensors raise many kinds for what is one thing here
        text = " ".join(str(error).split())[:160]
        raise DataError(f"{path} cannot be read as a {path.suffix} file ({text}): save it again.") from error
    return read_tensors(path)


def _array(value: Any) -> np.ndarray | None:
    if isinstance(value, np.ndarray):
        return value
    import torch

    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # numpy has no bfloat16


def _where(path: Path, name: str) -> str:
    return f"{name} in {path}" if name else str(path)
