"""Write pickles of huge arrays without holding them: the exact bytes of Python's own pickler, in pieces.

The published THINGS files are pickles (plain, inside `.npy`, inside torch zips). Their writer is rebuilt here opcode by
opcode (CPython's `Lib/pickletools.py` and `Modules/_pickle.c`: frames of 64 KiB, large buffers outside of frames, memo
numbers in order of appearance), so a file's size is known before a byte is written and an array's bytes come from a
function that streams them. Nothing in this package reads a pickle with this module, or with Python's.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from eegrecon.artifacts import atomic_write

FRAME = 1 << 16  # bytes after which CPython closes a frame, and from which a buffer stays outside of frames
BATCH = 1000  # items of a list or dict between two marks
OLD_NUMPY, NEW_NUMPY = "numpy.core", "numpy._core"  # where numpy 1 and numpy 2 say that they keep their functions


@dataclass(frozen=True)
class LargeArray:
    """An array that is written, never held.

    Attributes:
        shape: of the array, C order.
        dtype: of the array.
        fill: writes exactly the array's bytes to the file at its position and leaves the position behind them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: Callable[[BinaryIO], None]

    @property
    def nbytes(self) -> int:
        """Size of the array's data in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


Part = bytes | LargeArray


def size_of(parts: Sequence[Part]) -> int:
    """Bytes that `write_parts` will write."""
    return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)


def write_parts(file: BinaryIO, parts: Sequence[Part]) -> None:
    """Write the parts one after the other.

    Raises:
        RuntimeError: an array's `fill` wrote more or fewer bytes than its shape says: a bug in a layout's writer.
    """
    for part in parts:
        if isinstance(part, bytes):
            file.write(part)
            continue
        start = file.tell()
        part.fill(file)
        if file.tell() - start != part.nbytes:
            raise RuntimeError(f"an array of shape {part.shape} got {file.tell() - start} bytes, not {part.nbytes}")


def write_file(path: Path, parts: Sequence[Part]) -> Path:
    """Write the parts to a file that takes its name when it is complete; returns the path."""
    with atomic_write(path) as file:
        write_parts(cast(BinaryIO, file), parts)
    return path


def pickle_parts(value: Any, protocol: int, numpy_core: str = OLD_NUMPY) -> list[Part]:
    """What `pickle.dumps(value, protocol)` returns, with every `LargeArray` left as a gap to fill.

    Args:
        value: dicts, lists, tuples, str, int, float, bool, None, numpy arrays and `LargeArray`s.
        protocol: 3, 4 or 5.
        numpy_core: the module name that stands in the file; the published files are numpy 1's.

    Raises:
        ValueError: a value of another type, or an array beyond 4 GiB under protocol 3, which cannot hold one.
    """
    pickler = _Pickler(protocol, numpy_core)
    pickler.dump(value)
    return pickler.parts


def npy_object_parts(value: Any, numpy_core: str = OLD_NUMPY) -> list[Part]:
    """What `np.save(path, value)` writes for a dict: a header, then the pickled object array around it.

    numpy 1 pickles with protocol 3 (`numpy/lib/format.py`, `write_array`).
    """
    text = "{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"  # 128 bytes in all
    holder = np.empty((), dtype=object)
    holder[()] = value
    return [head, *pickle_parts(holder, 3, numpy_core)]


def write_torch_zip(path: Path, value: Any, protocol: int = 5, numpy_core: str = OLD_NUMPY) -> Path:
    """Write what `torch.save(value, path, pickle_protocol=protocol)` writes for a value without tensors.

    A zip of stored (uncompressed) records below a folder named as the file; torch's own readers take it.
    """
    parts = pickle_parts(value, protocol, numpy_core)
    with atomic_write(path) as file, zipfile.ZipFile(cast(BinaryIO, file), "w", zipfile.ZIP_STORED) as archive:
        info = zipfile.ZipInfo(f"{path.stem}/data.pkl")
        info.file_size = size_of(parts)  # beyond 2 GiB the record's header needs the long form
        with archive.open(info, "w") as record:
            _write_record(record, parts)
        for name, content in (("byteorder", "little"), ("version", "3\n"), (".data/serialization_id", "0" * 40)):
            archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}"), content)
    return path


def _write_record(record: Any, parts: Sequence[Part]) -> None:
    counter = _Counter(record)
    write_parts(cast(BinaryIO, counter), parts)


class _Counter:
    """A write-only file that knows how much was written: a zip record does not."""

    def __init__(self, file: Any) -> None:
        self._file, self._size = file, 0

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self._size


class _Pickler:
    """CPython's pickler for the few types the published files hold; methods are named after its own."""

    def __init__(self, protocol: int, numpy_core: str) -> None:
        if protocol not in (3, 4, 5):
            raise ValueError(f"pickle protocol {protocol} is none of 3, 4, 5")
        self.protocol, self.core = protocol, numpy_core
        self.parts: list[Part] = []
        self._frame = bytearray()
        self._memo: dict[Any, int] = {}

    def dump(self, value: Any) -> None:
        self.parts.append(b"\x80" + bytes([self.protocol]))
        self.save(value)
        self._frame += b"."
        self._commit()

    def save(self, value: Any) -> None:
        if len(self._frame) >= FRAME:
            self._commit()
        if value is None or value is True or value is False:
            self._frame += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self._int(value)
        elif isinstance(value, float):
            self._frame += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            self._str(value)
        elif isinstance(value, bytes):
            self._bytes(value)
        elif isinstance(value, tuple):
            self._tuple(value)
        elif isinstance(value, list):
            self._frame += b"]"
            self._memoize()
            self._batches(value, b"a", b"e", self.save)
        elif isinstance(value, dict):
            self._frame += b"}"
            self._memoize()
            self._batches(list(value.items()), b"s", b"u", self._pair)
        elif isinstance(value, np.dtype):
            self._dtype(value)
        elif isinstance(value, (np.ndarray, LargeArray)):
            self._array(value)
        else:
            raise ValueError(f"a {type(value).__name__} cannot be written into a look-alike file")

    def _commit(self) -> None:
        if self.protocol >= 4 and len(self._frame) >= 4:
            self.parts.append(b"\x95" + struct.pack("<Q", len(self._frame)))
        if self._frame:
            self.parts.append(bytes(self._frame))
            self._frame = bytearray()

    def _memoize(self, key: Any = None) -> None:
        number = len(self._memo)
        self._memo[("unshared", number) if key is None else key] = number
        if self.protocol >= 4:
            self._frame += b"\x94"
        else:
            self._frame += b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def _known(self, key: Any) -> bool:
        # CPython's memo goes by identity; the strings that repeat in these files are interned, so equal ones are one.
        number = self._memo.get(key)
        if number is None:
            return False
        self._frame += b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)
        return True

    def _int(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self._frame += b"K" + bytes([value])
        elif 0 <= value < 1 << 16:
            self._frame += b"M" + struct.pack("<H", value)
        elif -(1 << 31) <= value < 1 << 31:
            self._frame += b"J" + struct.pack("<i", value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self._frame += b"\x8a" + bytes([len(data)]) + data

    def _str(self, value: str) -> None:
        if self._known(("str", value)):
            return
        data = value.encode()
        short = self.protocol >= 4 and len(data) < 256
        self._frame += (b"\x8c" + bytes([len(data)]) if short else b"X" + struct.pack("<I", len(data))) + data
        self._memoize(("str", value))

    def _bytes(self, value: bytes) -> None:
        if not self._known(("bytes", value)):
            self._buffer(value)
            self._memoize(("bytes", value))

    def _buffer(self, data: bytes | LargeArray) -> None:
        size = len(data) if isinstance(data, bytes) else data.nbytes
        if size < 256:
            head = b"C" + bytes([size])
        elif size < 1 << 32:
            head = b"B" + struct.pack("<I", size)
        elif self.protocol >= 4:
            head = b"\x8e" + struct.pack("<Q", size)
        else:
            raise ValueError(f"pickle protocol {self.protocol} cannot hold an array of {size} bytes; its end is 4 GiB")
        self._large(head, size, data)

    def _large(self, head: bytes, size: int, data: bytes | LargeArray) -> None:
        if size >= FRAME:
            self._commit()
            self.parts += [head, data]
        else:
            self._frame += head + (data if isinstance(data, bytes) else _collect(data))

    def _tuple(self, value: tuple[Any, ...]) -> None:
        if not value:
            self._frame += b")"
            return
        if len(value) > 3:
            self._frame += b"("
        for item in value:
            self.save(item)
        self._frame += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
        self._memoize()

    def _pair(self, pair: tuple[Any, Any]) -> None:
        self.save(pair[0])
        self.save(pair[1])

    def _batches(self, items: list[Any], one: bytes, many: bytes, save: Callable[[Any], None]) -> None:
        if len(items) == 1:
            save(items[0])
            self._frame += one
            return
        for start in range(0, len(items), BATCH):
            self._frame += b"("
            for item in items[start : start + BATCH]:
                save(item)
            self._frame += many

    def _global(self, module: str, name: str) -> None:
        if self._known(("global", module, name)):
            return
        if self.protocol >= 4:
            self.save(module)
            self.save(name)
            self._frame += b"\x93"
        else:
            self._frame += f"c{module}\n{name}\n".encode()
        self._memoize(("global", module, name))

    def _dtype(self, dtype: np.dtype[Any]) -> None:
        if self._known(("dtype", dtype.str)):
            return
        _, arguments, state = cast("tuple[Any, ...]", dtype.__reduce__())
        self._global("numpy", "dtype")
        self.save(arguments)
        self._frame += b"R"
        self._memoize(("dtype", dtype.str))
        self.save(state)
        self._frame += b"b"

    def _array(self, array: np.ndarray | LargeArray) -> None:
        data: Any
        if array.dtype.hasobject:
            data = list(cast(np.ndarray, array).ravel())
        else:
            data = array if isinstance(array, LargeArray) else np.ascontiguousarray(array).tobytes()
        if self.protocol == 5 and not array.dtype.hasobject:
            self._global(f"{self.core}.numeric", "_frombuffer")
            self._frame += b"("
            size = array.nbytes
            self._large(b"\x96" + struct.pack("<Q", size), size, data)
            self._memoize()
            for item in (array.dtype, array.shape, "C"):
                self.save(item)
            self._frame += b"t"
            self._memoize()
            self._frame += b"R"
            self._memoize()
            return
        self._global(f"{self.core}.multiarray", "_reconstruct")
        self._reduce_arguments()
        self._frame += b"R"
        self._memoize()
        self._frame += b"("
        for part in (1, array.shape, array.dtype, False):
            self.save(part)
        if isinstance(data, list):
            self.save(data)
        else:
            self._buffer(data)
            self._memoize()
        self._frame += b"t"
        self._memoize()
        self._frame += b"b"

    def _reduce_arguments(self) -> None:
        # (numpy.ndarray, (0,), b"b"): an empty array to be given its state.
        self._global("numpy", "ndarray")
        self.save((0,))
        self.save(b"b")
        self._frame += b"\x87"
        self._memoize()


def _collect(array: LargeArray) -> bytes:
    file = io.BytesIO()
    array.fill(file)
    return file.getvalue()
