"""Reads what other projects pickled (`.npy` with an object, `.pkl`, torch's `.pt`) without executing any of it.

Published recordings are pickles of dictionaries, up to 8 GB. `read_pickle` returns plain Python values; arrays that are
large stay in the file and are handed out as `ArrayRef`, to be mapped or read row by row.
"""

from __future__ import annotations

import os
import stat
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy_format

from eegrecon.data.pickle_machine import NONSENSE, Machine
from eegrecon.data.pickle_names import ArrayParts, DtypeParts, Name
from eegrecon.data.pickle_source import Source, Span, shown
from eegrecon.errors import DataError

MAX_DEPTH = 64  # of lists in dictionaries in …; recordings have three levels
LOCAL_HEADER = 30  # bytes of a zip entry's header before its name
OLD_TORCH = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER: the first of several pickles in a row


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
        """Map the array read-only, in its shape; nothing is read until it is used.

        Raises:
            DataError: The file is gone or has become shorter.
        """
        order = "F" if self.fortran else "C"
        try:
            return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape, order=order)  # type: ignore[call-overload]
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} can no longer be read ({error}): copy or download it again.") from error


def map_rows(ref: ArrayRef, start: int, stop: int) -> np.ndarray:
    """Rows start…stop − 1 of the first axis as an array in memory.

    They come by plain reads, so that this process's memory holds these rows alone (mapped pages would count until the
    system takes them back). In Fortran order the rows lie scattered over the whole array: one small read each.

    Raises:
        DataError: The file is gone or has become shorter.
        ValueError: There are no such rows.
    """
    if not ref.shape or not 0 <= start <= stop <= ref.shape[0]:
        raise ValueError(f"rows {start} to {stop} of an array of shape {ref.shape}")
    rows = np.empty((stop - start, *ref.shape[1:]), dtype=ref.dtype, order="F" if ref.fortran else "C")
    if not rows.size:
        return rows
    lines = rows.T.reshape(-1, stop - start) if ref.fortran else rows.reshape(1, -1)  # what lies together in the file
    step = ref.dtype.itemsize * (ref.shape[0] if ref.fortran else prod(ref.shape[1:]))
    try:
        with ref.path.open("rb") as file:
            for i, line in enumerate(lines):
                file.seek(ref.offset + (i * step + start * ref.dtype.itemsize if ref.fortran else start * step))
                if file.readinto(line.view(np.uint8)) != line.nbytes:  # type: ignore[arg-type]
                    raise OSError("it became shorter")
    except OSError as error:
        raise DataError(
            f"{ref.path} can no longer be read ({error.strerror or error}): copy or download it again and leave it in "
            "place."
        ) from error
    return rows


def read_pickle(path: Path, *, inline_bytes: int = 1 << 20) -> Any:
    """Read a pickle, an `.npy` file that holds one object, or a torch zip of plain values and NumPy arrays.

    Arrays that pickle protocols 0 to 2 hide in text cannot be mapped; up to 256 MB of them are loaded.

    Args:
        path: The file.
        inline_bytes: Arrays larger than this are returned as `ArrayRef`, smaller ones as arrays.

    Returns:
        Dictionaries, lists, tuples, sets, texts, numbers, arrays and `ArrayRef`s.

    Raises:
        DataError: The file is missing, truncated, none of these, or names anything but data; nothing was executed.
    """
    path = Path(path)
    source = None
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise DataError(f"{path} is no regular file, expected a pickle, an .npy or a torch file: check the path.")
        with path.open("rb") as file:
            source = Source(path, file, *_stream(path, file))
            value = _finish(Machine(source, inline_bytes).run(), source, {}, 0)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): check the path and its rights.") from error
    except NONSENSE as error:
        raise DataError(
            f"{path} is damaged or no pickle: it makes no sense before byte {source.at if source else 0} "
            f"({type(error).__name__}: {shown(str(error))}): copy or download it again."
        ) from error
    if isinstance(value, int) and value == OLD_TORCH:
        raise DataError(
            f"{path} was written by torch.save in the format before torch 1.6, which eegrecon does not read: load it "
            "and save it again with a newer torch."
        )
    return value.item() if isinstance(value, np.ndarray) and value.dtype.hasobject and value.ndim == 0 else value


def _stream(path: Path, file: BinaryIO) -> tuple[int, int]:
    """Where the pickle begins and ends in the file."""
    start, size = file.read(6), os.fstat(file.fileno()).st_size
    if not start:
        raise DataError(f"{path} is empty: copy or download it again.")
    if start.startswith(b"<"):  # no opcode; what servers send instead of a file
        raise DataError(f"{path} is a web page, not a recording: download it again, and look at what the link gives.")
    if start.startswith(b"\x93NUMPY"):
        return _after_npy_header(path, file), size
    if start.startswith(b"PK\x03\x04"):
        return _torch_entry(path, file, size)
    return 0, size


def _after_npy_header(path: Path, file: BinaryIO) -> int:
    file.seek(0)
    try:
        version = npy_format.read_magic(file)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        _, _, dtype = read(file)
    except (EOFError, SyntaxError, TokenError, *NONSENSE) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} is no readable .npy file ({reason}): copy or download it again.") from error
    if not dtype.hasobject:
        raise DataError(f"{path} is a plain array of {dtype}, expected a pickled object: read it with numpy.load.")
    return file.tell()


def _torch_entry(path: Path, file: BinaryIO, size: int) -> tuple[int, int]:
    """Where `data.pkl` begins and ends inside a torch zip."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == "data.pkl"]
    except (zipfile.BadZipFile, NotImplementedError, *NONSENSE) as error:
        raise DataError(f"{path} is a truncated or damaged torch file ({error}): copy or download it again.") from error
    if len(entries) != 1 or entries[0].compress_type != zipfile.ZIP_STORED:
        raise DataError(
            f"{path} is a zip file without one uncompressed data.pkl, so torch.save did not write it: give eegrecon "
            "the file that is inside."
        )
    at = entries[0].header_offset
    file.seek(at)
    header = file.read(LOCAL_HEADER)
    begin = at + LOCAL_HEADER + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    end = begin + entries[0].file_size
    if not header.startswith(b"PK\x03\x04") or end > size:
        raise DataError(
            f"{path} is a truncated or damaged torch file (data.pkl should end at byte {end} of {size}): copy or "
            "download it again."
        )
    return begin, end


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
            found = source.fetch(value)
            done[key] = str(found, "utf-8", "surrogatepass") if value.text else found
        case DtypeParts():
            done[key] = value.dtype
        case Name():
            raise DataError(
                f"{source.path} holds the function or class {value.full} where data is expected: get it again from its "
                "publisher."
            )
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
        source.charge(len(parts.data))
        items = np.empty(len(parts.data), dtype=object)
        for i, part in enumerate(parts.data):
            items[i] = _finish(part, source, done, depth + 1)
        return items.reshape(parts.shape)  # NumPy lists objects row by row, whatever it says about their order
    data = parts.data
    if isinstance(data, Span):
        if parts.shape:
            return ArrayRef(source.path, data.offset, parts.dtype, parts.shape, parts.fortran)
        data = source.fetch(data)
    source.charge(len(data))
    array = np.frombuffer(data, dtype=parts.dtype).reshape(parts.shape, order=order).copy(order=order)
    return array[()] if parts.scalar else array
