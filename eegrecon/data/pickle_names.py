"""The names a recording's pickle may use, and what our machine builds for each: arrays in parts.

NumPy pickles an array as `_reconstruct(ndarray, (0,), b"b")` filled with (version, shape, dtype, Fortran order, bytes),
or, from protocol 5 on, as `_frombuffer(bytes, dtype, shape, order)` (numpy 2.4, `numpy/_core/numeric.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from eegrecon.data.pickle_source import Source, Span, shown
from eegrecon.errors import DataError

MAX_DIMS = 32
MAX_KEY_ITEMS = 16  # of a tuple that is a key
PLAIN = (str, bytes, int, float, type(None), Span)  # bool is an int
DTYPE = re.compile(r"[<>=|]?(?:b1|\?|[iu][1248]|f[248]|c(?:8|16)|[SU][1-9]\d{0,5}|O8?)")


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
        **{f"{core}.{name}": name for core in ("builtins", "__builtin__") for name in ("set", "frozenset")},
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
        case (("encode" | "bytes"), (str() | Span(text=True) as text, "latin1" | "latin-1")):
            return _encoded(text, source)
        case "bytes", (bytes() | Span(text=False),):
            return arguments[0]
        case "bytes", ():
            return b""
        case "dict", ():
            return {}
        case "dict", (list() as pairs,):
            source.charge(len(pairs))
            return dict(zip(keys(key for key, _ in pairs), (value for _, value in pairs), strict=True))
        case (("set" | "frozenset"), ()):
            return set() if name.kind == "set" else frozenset()
        case (("set" | "frozenset"), (list() as items,)):
            source.charge(len(items))
            return set(keys(items)) if name.kind == "set" else frozenset(keys(items))
    raise DataError(
        f"{source.path} calls {name.full} with arguments that no recording has: eegrecon reads plain data from pickles "
        "only; get the file again from its publisher."
    )


def keys(items: Iterable[Any]) -> list[Any]:
    """The items, each of which may be a key or in a set.

    Hashing is where forged data bite: tuples nested a million deep crash the interpreter, and tuples that hold the
    tuple below twice take forever from 60 levels on. Texts, numbers and short flat tuples of them are enough.

    Raises:
        TypeError: One of them is something else.
    """
    items = list(items)
    for item in items:
        parts = item if isinstance(item, tuple) and len(item) <= MAX_KEY_ITEMS else (item,)
        for part in parts:
            if not isinstance(part, PLAIN) and not (isinstance(part, ArrayParts) and part.scalar):
                raise TypeError(f"a {type(item).__name__} as a key")
    return items


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
        case DtypeParts(), (int(), "<" | ">" | "|" as order, None, None, None, *_) if (order == "|") == (
            target.dtype.byteorder == "|"
        ):
            target.dtype = target.dtype.newbyteorder(order)
        case _:
            raise DataError(
                f"{source.path} holds an array of records or an unknown kind, where plain numbers or text are "
                "expected: eegrecon cannot read it."
            )


def _checked(array: ArrayParts, source: Source) -> ArrayParts:
    """Compare the declared shape with the data before anything is allocated."""
    assert array.dtype is not None
    if isinstance(array.data, str):  # Python 2 wrote bytes as what Python 3 reads as text
        array.data = _encoded(array.data, source)
    count = prod(array.shape)
    if array.dtype.hasobject:
        there = len(array.data) if isinstance(array.data, list) and not array.scalar else -1
        unit, wanted = "objects", count
    else:
        data = array.data
        there = data.length if isinstance(data, Span) else len(data) if isinstance(data, bytes) else -1
        unit, wanted = "bytes", count * array.dtype.itemsize
    if there != wanted or (isinstance(array.data, Span) and array.data.text):
        raise DataError(
            f"{source.path} declares an array of shape {array.shape} and type {array.dtype}, which needs {wanted} "
            f"{unit}, but holds {max(there, 0)}: it is damaged or forged; get it again from its publisher."
        )
    return array


def _shape(shape: tuple[Any, ...], source: Source) -> tuple[int, ...]:
    if (
        len(shape) > MAX_DIMS
        or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
        or (0 in shape and prod(n for n in shape if n) >= 1 << 48)  # NumPy counts even (0, 2^62, 2^62) in 64 bits
    ):
        raise DataError(
            f"{source.path} declares an array of the impossible shape {shown(ascii(shape))}: get the file again from "
            "its publisher."
        )
    return shape


def _dtype(text: str, source: Source) -> np.dtype:
    if not DTYPE.fullmatch(text):
        raise DataError(
            f"{source.path} holds an array of type {shown(repr(text))}, where plain numbers or text are expected: "
            "eegrecon cannot read it."
        )
    return np.dtype(text)


def _encoded(text: str | Span, source: Source) -> bytes:
    """Bytes hidden in latin-1 text (pickle protocols 0 to 2): they have to be read to be understood."""
    if isinstance(text, Span):
        text = str(source.fetch(text), "utf-8")
    source.charge(len(text))
    return text.encode("latin-1")
