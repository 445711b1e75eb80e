"""The names a recording's pickle may use, and what our machine builds for each: arrays in parts.

NumPy pickles an array as `_reconstruct(ndarray, (0,), b"b")` filled with (version, shape, dtype, Fortran order, bytes),
or, from protocol 5 on, as `_frombuffer(bytes, dtype, shape, order)` (numpy 2.4, `numpy/_core/numeric.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from eegrecon.errors import DataError

if TYPE_CHECKING:
    from eegrecon.data.pickle_machine import Source

MAX_TEXT = 1 << 30  # bytes of an array hidden in latin-1 text that are decoded; it cannot be mapped
MAX_DIMS = 32
DTYPE = re.compile(r"[<>=|]?(?:[biufc](?:1|2|4|8|16)|[SUV]\d{1,6}|O8?|\?)")


class Span(NamedTuple):
    """A byte string left in the file."""

    offset: int
    length: int


@dataclass(frozen=True)
class Name:
    """One allowed name; `kind` says which builder it stands for."""

    kind: str
    full: str

    ALLOWED: ClassVar[dict[str, str]] = {
        **{f"numpy.{core}.multiarray._reconstruct": "reconstruct" for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray.scalar": "scalar" for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": "frombuffer" for core in ("core", "_core")},
        "numpy.ndarray": "ndarray",
        "numpy.dtype": "dtype",
        "_codecs.encode": "encode",
        "collections.OrderedDict": "dict",
        **{f"{core}.{name}": "bytes" for core in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
        **{f"{core}.set": "set" for core in ("builtins", "__builtin__")},
    }

    @classmethod
    def known(cls, module: str, name: str) -> Name | None:
        """The name, or None if it is not one of those that stand for data."""
        kind = cls.ALLOWED.get(f"{module}.{name}")
        return None if kind is None else cls(kind, f"{module}.{name}")


@dataclass(eq=False)
class DtypeParts:
    """A dtype by its short name; the state adds the byte order."""

    dtype: np.dtype


@dataclass(eq=False)
class ArrayParts:
    """An array whose pieces have been read: bytes (or their place), or a list of objects."""

    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: Any = None
    scalar: bool = False
    built: Any = field(default=None, repr=False)


def call(name: Name, arguments: tuple[Any, ...], source: Source) -> Any:
    """Build what an allowed name stands for.

    Raises:
        DataError: The arguments do not fit, or ask for a type that is no plain number or text.
    """
    match name.kind, arguments:
        case "reconstruct", (Name(kind="ndarray"), tuple(), *_):
            return ArrayParts()
        case "frombuffer", (data, DtypeParts() as dtype, tuple() as shape, "C" | "F" as order):
            return _checked(ArrayParts(dtype.dtype, _shape(shape, source), order == "F", data), source)
        case "scalar", (DtypeParts() as dtype, data):
            return _checked(ArrayParts(dtype.dtype, (), False, data, scalar=True), source)
        case "dtype", (str() as text, *_):
            return DtypeParts(_dtype(text, source))
        case "encode", (str() as text, "latin1" | "latin-1"):
            return text.encode("latin-1")
        case "encode", (Span() as span, "latin1" | "latin-1"):
            return _decode(span, source)
        case "dict", ():
            return {}
        case "dict", (list() as pairs,):
            return dict(pairs)
        case "bytes", ():
            return b""
        case "bytes", (bytes() as data,):
            return data
        case "bytes", (str() as text, "latin1" | "latin-1"):
            return text.encode("latin-1")
        case "set", ():
            return set()
        case "set", (list() as items,):
            return set(items)
    raise DataError(
        f"{source.path} calls {name.full} with arguments that no recording has: eegrecon reads plain data from pickles "
        "only; get the file again from its publisher."
    )


def build_state(target: ArrayParts | DtypeParts, state: Any, source: Source) -> None:
    """Fill an array or dtype with its state.

    Raises:
        DataError: The state does not fit the bytes that are there.
    """
    match target, state:
        case ArrayParts(dtype=None), (_, tuple() as shape, DtypeParts() as dtype, fortran, data):
            target.dtype, target.shape, target.fortran = dtype.dtype, _shape(shape, source), bool(fortran)
            target.data = data
            _checked(target, source)
        case DtypeParts(), (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
            target.dtype = target.dtype.newbyteorder(order) if order in "<>" else target.dtype
        case _:
            raise DataError(
                f"{source.path} holds an array of records or an unknown kind, where plain numbers or text are "
                "expected: eegrecon cannot read it."
            )


def _checked(array: ArrayParts, source: Source) -> ArrayParts:
    """Compare the declared shape with the data before anything is allocated."""
    assert array.dtype is not None
    count = prod(array.shape)
    if array.dtype.hasobject:
        there = len(array.data) if isinstance(array.data, list) else -1
        unit, wanted = "objects", count
    else:
        data = array.data
        there = data.length if isinstance(data, Span) else len(data) if isinstance(data, bytes | str) else -1
        unit, wanted = "bytes", count * array.dtype.itemsize
    if there != wanted:
        raise DataError(
            f"{source.path} declares an array of shape {array.shape} and type {array.dtype}, which needs {wanted} "
            f"{unit}, but holds {max(there, 0)}: it is damaged or forged; get it again from its publisher."
        )
    return array


def _shape(shape: tuple[Any, ...], source: Source) -> tuple[int, ...]:
    if len(shape) > MAX_DIMS or not all(type(n) is int and n >= 0 for n in shape):
        raise DataError(f"{source.path} declares an array of the impossible shape {shape!r}: get the file again.")
    return shape


def _dtype(text: str, source: Source) -> np.dtype:
    if not DTYPE.fullmatch(text):
        raise DataError(
            f"{source.path} holds an array of type {text!r}, where plain numbers or text are expected: eegrecon cannot "
            "read it."
        )
    return np.dtype(text)


def _decode(span: Span, source: Source) -> bytes:
    """Bytes hidden in a long latin-1 text (pickle protocols 0 to 2): they have to be read to be understood."""
    if span.length > MAX_TEXT:
        raise DataError(
            f"{source.path} was written with an old pickle protocol, which hides {span.length / 1e9:.1f} GB of numbers "
            "in text that cannot be mapped: save it again with protocol 4 or as .npy."
        )
    at = source.file.tell()
    source.file.seek(span.offset)
    text = source.file.read(span.length)
    source.file.seek(at)
    return str(text, "utf-8").encode("latin-1")
