"""Reads pickles and notices, by Python's audit events, if anything is run, imported or written meanwhile."""

import codecs
import sys

import pytest

from eegrecon.data.pickles import read_pickle
from eegrecon.errors import DataError

EVENTS = ("exec", "import", "open", "os.", "pickle.", "subprocess.", "pty.", "socket.", "ctypes.")
watched: list[str] | None = None
for codec in ("raw-unicode-escape", "latin-1", "cp437"):
    codecs.lookup(codec)  # Python imports these when text is first decoded with them


def watch(event, arguments):
    if watched is not None and event.startswith(EVENTS) and not (event == "open" and arguments[1] in ("r", "rb")):
        watched.append(f"{event}{arguments}")


sys.addaudithook(watch)


def read_watched(path, **options):
    """`read_pickle`, failing where anything is run, imported, or opened for writing."""
    global watched
    watched = []
    try:
        return read_pickle(path, **options)
    finally:
        seen, watched = watched, None
        assert not seen


def refused(path, message):
    with pytest.raises(DataError, match=message) as error:
        read_watched(path)
    text = str(error.value)
    assert str(path) in text
    assert text.isprintable()  # one line, no escape codes
    assert text.endswith(".")
    assert len(text) < 600
