"""A small machine for pickle streams that builds data and nothing else.

Pickle is a program that calls functions by name. This machine knows the opcodes of protocols 0 to 5, but no functions:
the few names that published recordings need (NumPy's constructors, OrderedDict) stand for builders of ours, and every
other name is refused before anything happens. Large byte strings are skipped over and remembered as places in the file.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from eegrecon.data.pickle_names import ArrayParts, DtypeParts, Name, Span, build_state, call
from eegrecon.errors import DataError

MAX_LINE = 1 << 16  # bytes of a text argument (protocol 0); longer ones are no recording
MARK = object()
STOP = b"."


@dataclass
class Source:
    """A stretch of a file, read forwards; every read says where a truncated file ends.

    Attributes:
        path: For messages.
        file: Opened for reading, positioned at the stream's start.
        end: Where the stream must have ended, bytes from the file's start.
    """

    path: Path
    file: BinaryIO
    end: int

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._room(count)
        return self.file.read(count)

    def skip(self, count: int) -> int:
        """Pass over `count` bytes; returns where they start."""
        self._room(count)
        start = self.file.tell()
        self.file.seek(count, 1)
        return start

    def line(self) -> bytes:
        """A text argument, without its newline."""
        text = self.file.readline(MAX_LINE)
        if not text.endswith(b"\n"):
            self.truncated(1)
        return text[:-1]

    def truncated(self, count: int) -> NoReturn:
        """Say at which byte something is missing."""
        at = min(self.file.tell(), self.end)
        raise DataError(
            f"{self.path} is truncated or damaged: at byte {at} it promises {count} more bytes, but {self.end - at} "
            "are left: copy or download it again."
        )

    def _room(self, count: int) -> None:
        if count < 0 or self.file.tell() + count > self.end:
            self.truncated(count)


class Machine:
    """Runs one stream.

    Args:
        source: The stream.
        inline_bytes: Byte strings longer than this are left in the file.
    """

    def __init__(self, source: Source, inline_bytes: int) -> None:
        self.source, self.inline_bytes = source, inline_bytes
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The stream's value, with arrays still in parts (see `pickle_names`).

        Raises:
            DataError: The stream is truncated, not a pickle, or names something that is not data.
        """
        try:
            while (code := self.source.read(1)) != STOP:
                step = STEPS.get(code)
                if step is None:
                    self.refuse(f"uses the pickle opcode {code!r}, which no recording needs")
                step(self)
            return self.pop()
        except DataError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, UnicodeError, struct.error, SyntaxError) as error:
            raise DataError(
                f"{self.source.path} is damaged: its pickle makes no sense before byte {self.source.file.tell()} "
                f"({type(error).__name__}): copy or download it again."
            ) from error

    def refuse(self, what: str) -> NoReturn:
        """Stop: the file asks for more than data."""
        raise DataError(
            f"{self.source.path} {what}; eegrecon reads plain data from pickles and executes nothing: if you trust the "
            "file, convert it to .npy or .safetensors yourself."
        )

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take one value off the stack."""
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("a mark where a value should be")
        return value

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        at = max(i for i, value in enumerate(self.stack) if value is MARK) if self.stack else -1
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def number(self, layout: str) -> Any:
        """A fixed-size number from the stream."""
        return struct.unpack(layout, self.source.read(struct.calcsize(layout)))[0]

    def bytes_of(self, count: int) -> bytes | Span:
        """A byte string, or its place where it is large."""
        if count > self.inline_bytes:
            return Span(self.source.skip(count), count)
        return self.source.read(count)

    def text_of(self, count: int) -> str | Span:
        """A text, or its place where it is large (NumPy arrays of protocols 0 to 2 hide in latin-1 text)."""
        found = self.bytes_of(count)
        return found if isinstance(found, Span) else str(found, "utf-8", "surrogatepass")

    def global_(self, module: str, name: str) -> None:
        """Push a name, if it is one of those that stand for data."""
        found = Name.known(module, name)
        if found is None:
            self.refuse(f"wants to use {module}.{name}")
        self.push(found)

    def reduce(self) -> None:
        """Call one of our builders."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            self.refuse("wants to call something that is not a known constructor")
        self.push(call(function, arguments, self.source))

    def build(self) -> None:
        """Fill an array or a dtype with its state."""
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, ArrayParts | DtypeParts):
            self.refuse(f"wants to change the state of a {type(target).__name__}")
        build_state(target, state, self.source)

    def put(self, key: int) -> None:
        """Remember the top of the stack."""
        if not self.stack or self.stack[-1] is MARK:
            raise ValueError("nothing to remember")
        self.memo[key] = self.stack[-1]

    def append(self, items: list[Any]) -> None:
        """Add to the list at the top."""
        if not isinstance(self.stack[-1], list):
            raise TypeError("no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add to the dictionary at the top."""
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise TypeError("no dictionary")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def add_items(self, items: list[Any]) -> None:
        """Add to the set at the top."""
        if not isinstance(self.stack[-1], set):
            raise TypeError("no set")
        self.stack[-1].update(items)


def _persistent(machine: Machine) -> None:
    machine.refuse("refers to data outside the pickle by a persistent id, as torch's tensors do")


def _text_global(machine: Machine) -> None:
    module = machine.source.line().decode()
    machine.global_(module, machine.source.line().decode())


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        machine.refuse("wants to use something whose name is no text")
    machine.global_(module, name)


def _inst(machine: Machine) -> None:
    machine.refuse(f"wants to make a {machine.source.line().decode()}.{machine.source.line().decode()}")


def _new(machine: Machine) -> None:
    machine.refuse("wants to make an object of a class")


def _extension(machine: Machine) -> None:
    machine.refuse("uses an extension code, whose meaning lies outside the file")


def _buffer(machine: Machine) -> None:
    machine.refuse("refers to a buffer outside the pickle")


def _int(machine: Machine) -> None:
    text = machine.source.line()
    machine.push(text == b"01" if text in (b"00", b"01") else int(text))  # protocol 0 writes False and True so


def _long(machine: Machine, layout: str) -> None:
    machine.push(int.from_bytes(machine.source.read(machine.number(layout)), "little", signed=True))


def _tuple(machine: Machine, count: int) -> None:
    items = [machine.pop() for _ in range(count)][::-1]
    machine.push(tuple(items))


def _string(machine: Machine) -> None:
    value = ast.literal_eval(machine.source.line().decode("ascii"))
    if not isinstance(value, str | bytes):
        raise TypeError("no string")
    machine.push(value)


def _dict(machine: Machine) -> None:
    items = machine.since_mark()
    machine.push({})
    machine.set_items(items)


def _frame(machine: Machine) -> None:
    machine.number("<Q")  # frames help unpicklers that read ahead; this one does not


def _pop_mark(machine: Machine) -> None:
    machine.since_mark()


def _pop_mark_or_value(machine: Machine) -> None:
    machine.stack.pop()


# Opcode to what it does; the names are those of CPython's Lib/pickle.py.
STEPS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": lambda m: None if m.number("<B") <= 5 else m.refuse("has a pickle protocol above 5"),  # PROTO
    b"\x95": _frame,  # FRAME
    b"(": lambda m: m.push(MARK),  # MARK
    b"0": _pop_mark_or_value,  # POP
    b"1": _pop_mark,  # POP_MARK
    b"2": lambda m: m.push(m.stack[-1]),  # DUP
    b"N": lambda m: m.push(None),  # NONE
    b"\x88": lambda m: m.push(True),  # NEWTRUE
    b"\x89": lambda m: m.push(False),  # NEWFALSE
    b"I": _int,  # INT
    b"J": lambda m: m.push(m.number("<i")),  # BININT
    b"K": lambda m: m.push(m.number("<B")),  # BININT1
    b"M": lambda m: m.push(m.number("<H")),  # BININT2
    b"L": lambda m: m.push(int(m.source.line().rstrip(b"L"))),  # LONG
    b"\x8a": lambda m: _long(m, "<B"),  # LONG1
    b"\x8b": lambda m: _long(m, "<i"),  # LONG4
    b"F": lambda m: m.push(float(m.source.line())),  # FLOAT
    b"G": lambda m: m.push(m.number(">d")),  # BINFLOAT
    b"S": _string,  # STRING
    b"T": lambda m: m.push(m.bytes_of(m.number("<i"))),  # BINSTRING
    b"U": lambda m: m.push(m.bytes_of(m.number("<B"))),  # SHORT_BINSTRING
    b"B": lambda m: m.push(m.bytes_of(m.number("<I"))),  # BINBYTES
    b"C": lambda m: m.push(m.bytes_of(m.number("<B"))),  # SHORT_BINBYTES
    b"\x8e": lambda m: m.push(m.bytes_of(m.number("<Q"))),  # BINBYTES8
    b"\x96": lambda m: m.push(m.bytes_of(m.number("<Q"))),  # BYTEARRAY8
    b"V": lambda m: m.push(str(m.source.line(), "raw-unicode-escape")),  # UNICODE
    b"X": lambda m: m.push(m.text_of(m.number("<I"))),  # BINUNICODE
    b"\x8c": lambda m: m.push(m.text_of(m.number("<B"))),  # SHORT_BINUNICODE
    b"\x8d": lambda m: m.push(m.text_of(m.number("<Q"))),  # BINUNICODE8
    b")": lambda m: m.push(()),  # EMPTY_TUPLE
    b"\x85": lambda m: _tuple(m, 1),  # TUPLE1
    b"\x86": lambda m: _tuple(m, 2),  # TUPLE2
    b"\x87": lambda m: _tuple(m, 3),  # TUPLE3
    b"t": lambda m: m.push(tuple(m.since_mark())),  # TUPLE
    b"]": lambda m: m.push([]),  # EMPTY_LIST
    b"l": lambda m: m.push(m.since_mark()),  # LIST
    b"a": lambda m: m.append([m.pop()]),  # APPEND
    b"e": lambda m: m.append(m.since_mark()),  # APPENDS
    b"}": lambda m: m.push({}),  # EMPTY_DICT
    b"d": _dict,  # DICT
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),  # SETITEM
    b"u": lambda m: m.set_items(m.since_mark()),  # SETITEMS
    b"\x8f": lambda m: m.push(set()),  # EMPTY_SET
    b"\x90": lambda m: m.add_items(m.since_mark()),  # ADDITEMS
    b"\x91": lambda m: m.push(frozenset(m.since_mark())),  # FROZENSET
    b"p": lambda m: m.put(int(m.source.line())),  # PUT
    b"q": lambda m: m.put(m.number("<B")),  # BINPUT
    b"r": lambda m: m.put(m.number("<I")),  # LONG_BINPUT
    b"\x94": lambda m: m.put(len(m.memo)),  # MEMOIZE
    b"g": lambda m: m.push(m.memo[int(m.source.line())]),  # GET
    b"h": lambda m: m.push(m.memo[m.number("<B")]),  # BINGET
    b"j": lambda m: m.push(m.memo[m.number("<I")]),  # LONG_BINGET
    b"c": _text_global,  # GLOBAL
    b"\x93": _stack_global,  # STACK_GLOBAL
    b"R": lambda m: m.reduce(),  # REDUCE
    b"b": lambda m: m.build(),  # BUILD
    b"i": _inst,  # INST
    b"o": _new,  # OBJ
    b"\x81": _new,  # NEWOBJ
    b"\x92": _new,  # NEWOBJ_EX
    b"P": _persistent,  # PERSID
    b"Q": _persistent,  # BINPERSID
    b"\x82": _extension,  # EXT1
    b"\x83": _extension,  # EXT2
    b"\x84": _extension,  # EXT4
    b"\x97": _buffer,  # NEXT_BUFFER
    b"\x98": _buffer,  # READONLY_BUFFER
}
