"""The bytes of a pickle stream: read forwards, never past their end, and never copied more often than the file is long.

A few opcodes can ask for any amount of memory: a length of 2^62, or one megabyte used a million times. What is read is
therefore compared with what is left, and what is copied is charged against the size of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from eegrecon.errors import DataError

MAX_LINE = 1 << 24  # bytes of a text argument (protocol 0)
FREE_COPIES = 1 << 20  # bytes that may be copied whatever the file's size
COPIES = 4  # how often the file's size may be copied on top: text -> bytes -> array is twice
MAX_TEXT = 1 << 28  # bytes of numbers hidden in text that are decoded; they cannot be mapped
MAX_SHOWN = 120  # characters of a name from the file that a message repeats


@dataclass(frozen=True)
class Span:
    """A byte string left in the file.

    Attributes:
        offset: Where it begins, bytes from the file's start.
        length: Bytes.
        text: Whether the bytes are text in UTF-8.
    """

    offset: int
    length: int
    text: bool = False


class Source:
    """A stretch of a file, read forwards.

    Args:
        path: For messages.
        file: Opened for reading.
        begin: Where the stream begins, bytes from the file's start.
        end: Where it must have ended.
    """

    def __init__(self, path: Path, file: BinaryIO, begin: int, end: int) -> None:
        self.path, self.file, self.at, self.end = path, file, begin, end
        self.copies_left = FREE_COPIES + COPIES * (end - begin)
        file.seek(begin)

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._room(count)
        found = self.file.read(count)
        if len(found) != count:
            self.truncated(count)
        self.at += count
        return found

    def skip(self, count: int, *, text: bool = False) -> Span:
        """Pass over `count` bytes; returns where they are."""
        self._room(count)
        span = Span(self.at, count, text)
        self.at += count
        self.file.seek(self.at)
        return span

    def line(self) -> bytes:
        """A text argument, without its newline."""
        text = self.file.readline(min(MAX_LINE, self.end - self.at))
        if not text.endswith(b"\n"):
            if len(text) == MAX_LINE:
                raise DataError(
                    f"{self.path} holds a line of more than {MAX_LINE >> 20} MB at byte {self.at}, as pickle protocol "
                    "0 writes large arrays: save it again with protocol 4."
                )
            self.truncated(self.end - self.at + 1)
        self.at += len(text)
        return text[:-1]

    def fetch(self, span: Span) -> bytes:
        """The bytes of a span that turned out to be needed.

        Raises:
            DataError: They are too many for text.
        """
        if span.length > MAX_TEXT:
            raise DataError(
                f"{self.path} holds {span.length / 1e9:.1f} GB as one text or byte string, where old pickle protocols "
                "hide arrays, and that cannot be mapped: save it again with protocol 4 or as .npy."
            )
        self.charge(span.length)
        self.file.seek(span.offset)
        found = self.file.read(span.length)
        self.file.seek(self.at)
        return found

    def charge(self, count: int) -> None:
        """Count `count` bytes or items that are copied.

        Raises:
            DataError: The stream multiplies its own parts.
        """
        self.copies_left -= count
        if self.copies_left < 0:
            raise DataError(
                f"{self.path} grows to more than {COPIES} times its own size when it is read, as only forged files do: "
                "get it again from its publisher."
            )

    def truncated(self, count: int) -> NoReturn:
        """Say at which byte something is missing."""
        raise DataError(
            f"{self.path} is truncated or damaged: at byte {self.at} it promises {count} more bytes, but "
            f"{max(self.end - self.at, 0)} are left: copy or download it again."
        )

    def _room(self, count: int) -> None:
        if not 0 <= count <= self.end - self.at:
            self.truncated(count)


def shown(text: str) -> str:
    """A name from the file as a message may repeat it: short, on one line, without escape codes for the terminal."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
