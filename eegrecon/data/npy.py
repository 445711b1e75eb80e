"""Plain `.npy` files, checked on reading and streamed on writing; what every store is made of."""

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from eegrecon.artifacts import sha256_file
from eegrecon.errors import DataError


def read_header(path: Path, kinds: Mapping[str, type | tuple[type, ...]], *, schema: int, fix: str) -> dict[str, Any]:
    """Read a store's `header.json` and check that it has every field, of the right kind, in a known schema.

    Args:
        path: The header file.
        kinds: Field name to the type(s) its value must have.
        schema: The schema number this version reads.
        fix: The command that makes the store, for the message.

    Raises:
        DataError: It is missing, no JSON object, of another schema, or lists every field that is absent or wrong.
    """
    if not path.is_file():
        state = "is unfinished (it has no header.json)" if path.parent.is_dir() else "does not exist"
        raise DataError(f"The store {path.parent} {state}: make it with {fix}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): make the store again with {fix}.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a JSON object, but it holds a {type(values).__name__}: run {fix} again.")
    if values.get("schema") != schema:
        raise DataError(
            f"{path} has schema {values.get('schema')!r}, but this eegrecon reads schema {schema}: make the store "
            f"again with {fix}, or use the eegrecon version that wrote it."
        )
    problems = [f"{name!r} is missing" for name in kinds if name not in values]
    problems += [
        f"{name!r} is {values[name]!r}, which is no {_kind_name(kind)}"
        for name, kind in kinds.items()
        if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool))
    ]
    if problems:
        raise DataError(f"{path} is not a header this version can read: {'; '.join(problems)}: run {fix} again.")
    return values


def _kind_name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(item.__name__ for item in (kind if isinstance(kind, tuple) else (kind,)))


def open_array(path: Path, record: Mapping[str, Any] | None, *, fix: str, verify: bool = False) -> np.ndarray:
    """Memory-map a `.npy` file read-only after checking it against what its store's header says.

    The size is always checked, so a truncated file is found before anything is computed; the content only on demand.

    Args:
        path: The file.
        record: `{shape, dtype, sha256}` from the header.
        fix: The command that makes the store, for the message.
        verify: Also hash the whole file.

    Returns:
        The array, C order; an empty array is returned as a plain one (nothing can be mapped).

    Raises:
        DataError: The file is missing, truncated, or is not the array the header describes.
    """
    if record is None or not {"shape", "dtype", "sha256"} <= set(record):
        raise DataError(f"{path.parent / 'header.json'} does not describe {path.name} fully: run {fix} again.")
    if not path.is_file():
        raise DataError(f"{path} is missing, though its store's header lists it: make the store again with {fix}.")
    shape, dtype = tuple(record["shape"]), np.dtype(record["dtype"])
    try:
        with path.open("rb") as file:
            found_shape, fortran, found_dtype, offset = _read_npy_header(file)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no .npy file ({error}): make the store again with {fix}.") from error
    if found_shape != shape or found_dtype != dtype or fortran:
        order = "Fortran" if fortran else "C"
        raise DataError(
            f"{path} holds {found_dtype} of shape {found_shape} in {order} order, but its store's header says {dtype} "
            f"of shape {shape} in C order: make the store again with {fix}."
        )
    expected, got = offset + int(np.prod(shape)) * dtype.itemsize, path.stat().st_size
    if got != expected:
        state = "truncated" if got < expected else "too long"
        raise DataError(f"{path} is {state}: expected {expected} bytes, found {got}: make it again with {fix}.")
    if verify and (found := sha256_file(path)) != record["sha256"]:
        raise DataError(
            f"{path} was changed after it was made (sha256 {found[:12]}…, expected {record['sha256'][:12]}…): make "
            f"the store again with {fix}."
        )
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)


def _read_npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    version = npy_format.read_magic(file)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype, file.tell()


class NpyStream:
    """Writes one C-order `.npy` file row block by row block, under a temporary name until `finish`.

    Args:
        path: The final file; the blocks go to `.<name>.partial` beside it.
        shape: Shape of the whole array; the first axis is the one that is streamed.
        dtype: Stored type.
        resume: Keep the whole rows of a partial or finished file that is there already (the caller knows that they are
            right).
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any, *, resume: bool = False) -> None:
        self.path, self.shape, self.dtype = Path(path), tuple(int(n) for n in shape), np.dtype(dtype)
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = io.BytesIO()
        description = {
            "descr": npy_format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": self.shape,
        }
        npy_format.write_array_header_1_0(head, description)
        start, row = head.getvalue(), int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self.rows = 0
        self._written = hashlib.sha256()
        if resume and self.path.is_file() and not self.partial.is_file():
            self.path.replace(self.partial)  # killed between this file's end and its store's
        if resume and self.partial.is_file():
            with self.partial.open("rb") as file:
                same = file.read(len(start)) == start
            if same:
                self.rows = min((self.partial.stat().st_size - len(start)) // row, self.shape[0])
        self._file = self.partial.open("r+b" if self.rows else "wb")
        if self.rows:
            self._file.truncate(len(start) + self.rows * row)
            while chunk := self._file.read(1 << 20):
                self._written.update(chunk)
        else:
            self._file.write(start)
            self._written.update(start)

    def append(self, block: np.ndarray) -> None:
        """Add rows: `block` is (k, *shape[1:]), cast to the stored type.

        Raises:
            DataError: The block has another shape, goes beyond the end, or holds values that are not finite (or are
                too large for the stored type).
        """
        if block.shape[1:] != self.shape[1:] or self.rows + len(block) > self.shape[0]:
            raise DataError(
                f"A block of shape {block.shape} does not fit into {self.path} of shape {self.shape} after row "
                f"{self.rows}: this is a fault of whoever writes the store."
            )
        with np.errstate(over="ignore"):  # an overflow becomes Inf, which is reported below
            stored = np.ascontiguousarray(block, dtype=self.dtype)
        if self.dtype.kind == "f" and not np.isfinite(stored).all():
            row = self.rows + int(np.argwhere(~np.isfinite(stored))[0][0])
            raise DataError(
                f"Row {row} for {self.path} holds values that are NaN, infinite or too large for {self.dtype}: check "
                "what it was computed from; nothing was written under that name."
            )
        data = stored.reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._file.flush()
        self._written.update(data)
        self.rows += len(block)

    def finish(self) -> dict[str, Any]:
        """Read the file back, compare it and give it its final name; returns `{shape, dtype, sha256}` for the header.

        Raises:
            DataError: Rows are missing, or the disk does not give back what was written.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):  # read back from the disk, not from the system's memory
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.close()
        if self.rows != self.shape[0]:
            raise DataError(f"{self.path} needs {self.shape[0]} rows, but only {self.rows} were written.")
        found = sha256_file(self.partial)
        if found != self._written.hexdigest():
            raise DataError(
                f"{self.partial} does not read back as it was written (sha256 {found[:12]}…, expected "
                f"{self._written.hexdigest()[:12]}…): the disk or another program changed it; check the disk and run "
                "the command again."
            )
        self.partial.replace(self.path)
        return {"shape": list(self.shape), "dtype": self.dtype.name, "sha256": found}

    def close(self) -> None:
        """Close the file and leave the partial rows for a later `resume`."""
        self._file.close()

    def discard(self) -> None:
        """Close the file and remove the partial rows."""
        self.close()
        self.partial.unlink(missing_ok=True)


def save_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Write a small array at once; returns `{shape, dtype, sha256}` for the header."""
    stream = NpyStream(path, array.shape, array.dtype)
    stream.append(array)
    return stream.finish()
