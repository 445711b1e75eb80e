"""A small machine for pickle streams that builds data and nothing else.

Pickle is a program that calls functions by name. This machine knows the opcodes of protocols 0 to 5, but no functions:
the few names that published recordings need (NumPy's constructors, OrderedDict) stand for builders of ours, and every
other name is refused before anything happens. Large byte strings are skipped over and remembered as places in the file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, NoReturn

from eegrecon.data.pickle_names import ArrayParts, DtypeParts, Name, build_state, call, keys
from eegrecon.data.pickle_source import Source, Span, shown
from eegrecon.errors import DataError

MAX_STEPS = 5_000_000  # opcodes; a published file has some thousands, and each may take 64 bytes of memory
MAX_WORD = 1 << 16  # bytes of a text that is read at once; longer ones are left in the file until they are needed
MAX_LONG = 1 << 10  # bytes of a number
STOP = b"."
# Python 2 wrote texts as their repr; these are the escapes of its `string_repr` (Objects/stringobject.c).
ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([\\'\"nrt]))")
ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
# What damaged bytes make Python raise, here and in the parts that are put together afterwards.
NONSENSE = (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError, struct.error)


class Machine:
    """Runs one stream.

    Args:
        source: The stream.
        inline_bytes: Byte strings longer than this are left in the file.
    """

    def __init__(self, source: Source, inline_bytes: int) -> None:
        self.source, self.inline_bytes = source, inline_bytes
        self.stack: list[Any] = []  # since the last mark
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The stream's value, with arrays still in parts (see `pickle_names`).

        Raises:
            DataError: The stream is truncated, or names something that is not data.
            One of NONSENSE: The stream is no pickle.
        """
        steps = 0
        while (code := self.source.read(1)) != STOP:
            step = STEPS.get(code)
            if step is None:
                self.refuse(f"uses the pickle opcode {code!r}, which no recording needs")
            if (steps := steps + 1) > MAX_STEPS:
                self.refuse(f"holds more than {MAX_STEPS:,} values outside of arrays")
            step(self)
        return self.pop()

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
        return self.stack.pop()

    def mark(self) -> None:
        """Begin a group of values."""
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Take the group of values since the last mark, and the mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def number(self, layout: str) -> Any:
        """A fixed-size number from the stream."""
        return struct.unpack(layout, self.source.read(struct.calcsize(layout)))[0]

    def bytes_of(self, count: int) -> bytes | Span:
        """A byte string, or its place where it is large."""
        return self.source.read(count) if count <= self.inline_bytes else self.source.skip(count)

    def text_of(self, count: int) -> str | Span:
        """A text, or its place where it is large (NumPy arrays of protocols 0 to 2 hide in latin-1 text)."""
        if count > MAX_WORD:
            return self.source.skip(count, text=True)
        return str(self.source.read(count), "utf-8", "surrogatepass")

    def old_text_of(self, count: int) -> str | Span:
        """A text as Python 2 wrote it, which may as well be the bytes of an array."""
        return str(self.source.read(count), "latin-1") if 0 <= count <= MAX_WORD else self.source.skip(count)

    def global_(self, module: str, name: str) -> None:
        """Push a name, if it is one of those that stand for data."""
        found = Name.known(module, name)
        if found is None:
            self.refuse(f"wants to use {shown(f'{module}.{name}')}")
        self.push(found)

    def reduce(self) -> None:
        """Call one of our builders."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            self.refuse("wants to call something that is not a known constructor")
        self.push(call(function, arguments, self.source))

    def make(self) -> None:
        """Refuse to make an instance (NEWOBJ, NEWOBJ_EX and OBJ, which have the class at different depths)."""
        near = [*(self.below[-1] if self.below else []), *self.stack]
        named = [value.full for value in near if isinstance(value, Name)]
        self.refuse(f"wants to make an object of {named[-1] if named else 'a class'}")

    def build(self) -> None:
        """Fill an array or a dtype with its state."""
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, ArrayParts | DtypeParts):
            self.refuse(f"wants to change the state of a {type(target).__name__}")
        build_state(target, state, self.source)

    def put(self, key: int) -> None:
        """Remember the top of the stack."""
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
        self.stack[-1].update(zip(keys(items[::2]), items[1::2], strict=True))

    def add_items(self, items: list[Any]) -> None:
        """Add to the set at the top."""
        if not isinstance(self.stack[-1], set):
            raise TypeError("no set")
        self.stack[-1].update(keys(items))


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
    module = machine.source.line().decode()
    machine.refuse(f"wants to make a {shown(f'{module}.{machine.source.line().decode()}')}")


def _extension(machine: Machine) -> None:
    machine.refuse("uses an extension code, whose meaning lies outside the file")


def _buffer(machine: Machine) -> None:
    machine.refuse("refers to a buffer outside the pickle")


def _int(machine: Machine) -> None:
    text = machine.source.line()
    machine.push(text == b"01" if text in (b"00", b"01") else int(text))  # protocol 0 writes False and True so


def _long(machine: Machine, layout: str) -> None:
    count = machine.number(layout)
    if count > MAX_LONG:
        machine.refuse(f"holds a number of {count} bytes")
    machine.push(int.from_bytes(machine.source.read(count), "little", signed=True))


def _tuple(machine: Machine, count: int) -> None:
    items = [machine.pop() for _ in range(count)][::-1]
    machine.push(tuple(items))


def _string(machine: Machine) -> None:
    text = machine.source.line()
    if len(text) < 2 or text[:1] not in b"'\"" or text[:1] != text[-1:]:
        raise ValueError("no quotes")
    machine.push(str(ESCAPE.sub(_escaped, text[1:-1]), "latin-1"))


def _escaped(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 16)]) if found[1] else ESCAPES.get(found[2], found[2])


def _dict(machine: Machine) -> None:
    items = machine.since_mark()
    machine.push({})
    machine.set_items(items)


def _frame(machine: Machine) -> None:
    machine.number("<Q")  # frames help unpicklers that read ahead; this one does not


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.pop()
    else:
        machine.since_mark()  # an empty group is a mark


def _pop_mark(machine: Machine) -> None:
    machine.since_mark()


# Opcode to what it does; the names are those of CPython's Lib/pickle.py.
STEPS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": lambda m: None if m.number("<B") <= 5 else m.refuse("has a pickle protocol above 5"),  # PROTO
    b"\x95": _frame,  # FRAME
    b"(": lambda m: m.mark(),  # MARK
    b"0": _pop,  # POP
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
    b"T": lambda m: m.push(m.old_text_of(m.number("<i"))),  # BINSTRING
    b"U": lambda m: m.push(m.old_text_of(m.number("<B"))),  # SHORT_BINSTRING
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
    b"\x91": lambda m: m.push(frozenset(keys(m.since_mark()))),  # FROZENSET
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
    b"o": lambda m: m.make(),  # OBJ
    b"\x81": lambda m: m.make(),  # NEWOBJ
    b"\x92": lambda m: m.make(),  # NEWOBJ_EX
    b"P": _persistent,  # PERSID
    b"Q": _persistent,  # BINPERSID
    b"\x82": _extension,  # EXT1
    b"\x83": _extension,  # EXT2
    b"\x84": _extension,  # EXT4
    b"\x97": _buffer,  # NEXT_BUFFER
    b"\x98": _buffer,  # READONLY_BUFFER
}
