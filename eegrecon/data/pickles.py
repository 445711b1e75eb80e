"""Reads what other projects pickled (`.npy` with an object, `.pkl`, torch's `.pt`) without executing any of it.

Published recordings are pickles of dictionaries, up to 8 GB. `read_pickle` returns plain Python values; arrays that are
large stay in the file and are handed out as `ArrayRef`, to be mapped or read row by row.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy_format

from eegrecon.data.pickle_machine import Machine, Source
from eegrecon.data.pickle_names import ArrayParts, DtypeParts, Name, Span
from eegrecon.errors import DataError

MAX_DEPTH = 64  # of lists in dictionaries in …; recordings have three levels
LOCAL_HEADER = 30  # bytes of a zip entry's header before its name


@dataclass(frozen=True)
class ArrayRef:
    """An array inside a file, not loaded.

    Attributes:
        path: The file.
        offset: Where its bytes begin.
        dtype: Element type, byte order included.
        shape: Shape.
        fortran: Whether the bytes are in Fortran order.
    """

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def map(self) -> np.ndarray:
        """Map the array read-only, in its shape; nothing is read until it is used."""
        order = "F" if self.fortran else "C"
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape, order=order)  # type: ignore[call-overload]


def map_rows(ref: ArrayRef, start: int, stop: int) -> np.ndarray:
    """Rows start…stop − 1 of the first axis as an array in memory.

    C-order rows come by plain reads, so that this process's memory holds these rows alone (mapped pages would count
    until the system takes them back).

    Raises:
        DataError: The file has become shorter.
    """
    if not 0 <= start <= stop <= ref.shape[0]:
        raise ValueError(f"rows {start} to {stop} of {ref.shape[0]}")
    if ref.fortran and len(ref.shape) > 1:
        return np.array(ref.map()[start:stop])
    rows = np.empty((stop - start, *ref.shape[1:]), dtype=ref.dtype)
    step = ref.nbytes // ref.shape[0] if ref.shape[0] else 0
    with ref.path.open("rb") as file:
        file.seek(ref.offset + start * step)
        got = file.readinto(rows.reshape(-1).view(np.uint8)) if rows.nbytes else 0  # type: ignore[arg-type]
    if got != rows.nbytes:
        raise DataError(f"{ref.path} became shorter while it was read: copy it again and do not touch it meanwhile.")
    return rows


def read_pickle(path: Path, *, inline_bytes: int = 1 << 20) -> Any:
    """Read a pickle, an `.npy` file that holds one object, or a torch zip of plain values and NumPy arrays.

    Args:
        path: The file.
        inline_bytes: Arrays larger than this are returned as `ArrayRef`, smaller ones as arrays.

    Returns:
        Dictionaries, lists, tuples, sets, texts, numbers, arrays and `ArrayRef`s.

    Raises:
        DataError: The file is missing, truncated, none of these, or names anything but data; nothing was executed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(6)
            size = os.fstat(file.fileno()).st_size
            offset, end = 0, size
            if start.startswith(b"\x93NUMPY"):
                offset = _after_npy_header(path, file)
            elif start.startswith(b"PK"):
                offset, end = _torch_entry(path, file)
            elif not start:
                raise DataError(f"{path} is empty: copy or download it again.")
            file.seek(offset)
            value = Machine(Source(path, file, end), inline_bytes).run()
            value = _finish(value, Source(path, file, end), {}, 0)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): check the path and its rights.") from error
    return value.item() if isinstance(value, np.ndarray) and value.dtype.hasobject and value.ndim == 0 else value


def _after_npy_header(path: Path, file: BinaryIO) -> int:
    file.seek(0)
    try:
        version = npy_format.read_magic(file)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        _, _, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no readable .npy file ({error}): copy or download it again.") from error
    if not dtype.hasobject:
        raise DataError(f"{path} is a plain array of {dtype}, expected a pickled object: read it with numpy.load.")
    return file.tell()


def _torch_entry(path: Path, file: BinaryIO) -> tuple[int, int]:
    """Where `data.pkl` begins and ends inside a torch zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
            if len(entries) != 1 or entries[0].compress_type != zipfile.ZIP_STORED:
                raise DataError(
                    f"{path} is a zip file without one uncompressed data.pkl, so torch.save did not write it: give "
                    "eegrecon the file that is inside."
                )
            entry = entries[0]
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is a truncated or damaged torch file ({error}): copy or download it again.") from error
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER)
    begin = entry.header_offset + LOCAL_HEADER + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    return begin, begin + entry.file_size


def _finish(value: Any, source: Source, done: dict[int, Any], depth: int) -> Any:
    """Put arrays together, everywhere inside the value; shared parts once."""
    if depth > MAX_DEPTH:
        raise DataError(f"{source.path} nests values more than {MAX_DEPTH} deep: no recording does; get it again.")
    key = id(value)
    if key in done:
        return done[key]
    match value:
        case ArrayParts():
            done[key] = _array(value, source, done, depth)
        case Span():
            raise DataError(f"{source.path} holds a byte string of {value.length} bytes that is no array.")
        case DtypeParts() | Name():
            done[key] = str(value.dtype) if isinstance(value, DtypeParts) else value.full
        case dict():
            done[key] = result = {}
            for name, part in value.items():
                result[_finish(name, source, done, depth + 1)] = _finish(part, source, done, depth + 1)
        case list():
            items: list[Any] = []
            done[key] = items
            items.extend(_finish(part, source, done, depth + 1) for part in value)
        case tuple() | set() | frozenset():
            done[key] = type(value)(_finish(part, source, done, depth + 1) for part in value)
        case _:
            return value
    return done[key]


def _array(parts: ArrayParts, source: Source, done: dict[int, Any], depth: int) -> Any:
    if parts.dtype is None:
        raise DataError(f"{source.path} holds an array without its numbers: it is damaged; get it again.")
    order: Literal["C", "F"] = "F" if parts.fortran else "C"
    if parts.dtype.hasobject:
        items = np.empty(len(parts.data), dtype=object)
        for i, part in enumerate(parts.data):
            items[i] = _finish(part, source, done, depth + 1)
        return items.reshape(parts.shape, order=order)
    if isinstance(parts.data, Span):
        return ArrayRef(source.path, parts.data.offset, parts.dtype, parts.shape, parts.fortran)
    data = parts.data.encode("latin-1") if isinstance(parts.data, str) else parts.data
    array = np.frombuffer(data, dtype=parts.dtype).reshape(parts.shape, order=order).copy(order=order)
    return array[()] if parts.scalar else array
