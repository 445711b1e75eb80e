"""Whether a downloaded file is the published one: its size, the publisher's checksum, an archive's own sums."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from eegrecon.errors import DataError

BLOCK = 1 << 20
ALGORITHMS = ("sha256", "md5", "git-sha1")
Progress = Callable[[str, int, int | None], None]  # what is being done, bytes so far, all bytes (None: unknown)


class Wrong(Exception):
    """A file is not what the publisher says; the text is the beginning of a sentence."""


def silent(what: str, done: int, total: int | None) -> None:
    """Show no progress."""


def verify(name: str, sum_of: str | None, path: Path, size: int | None, tell: Progress = silent) -> tuple[str, ...]:
    """Compare a whole file with what the publisher says.

    Args:
        name: What the publisher calls it.
        sum_of: Its checksum, "sha256:…", "md5:…" or "git-sha1:…"; None when there is none.
        path: Where it lies, under whatever name.
        size: Its size in bytes; None when nobody says it: a zip archive is then verified by its own sums.
        tell: Called with "verifying", the bytes so far, and all bytes.

    Returns:
        By what it was verified: "size", the kind of the checksum, "archive".

    Raises:
        Wrong: It is another file, or nothing can be said about it.
        DataError: The checksum is of an unknown kind.
    """
    verified = []
    if not path.is_file():
        raise Wrong(f"{path} is a folder, but {name} is a file")
    have = path.stat().st_size
    if size is not None:
        if have != size:
            raise Wrong(f"{name} has {have:,} bytes, but {size:,} were expected")
        verified.append("size")
    if sum_of is not None:
        kind, _, expected = sum_of.partition(":")
        found = checksum(path, kind, tell)
        if found != expected.lower():
            raise Wrong(f"{name} is damaged: its {kind} is {found[:12]}…, but the publisher says {expected[:12]}…")
        verified.append(kind)
    if size is None and name.endswith(".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError) as error:
            raise Wrong(f"{name} is no complete zip archive ({error})") from error
        if damaged is not None:
            raise Wrong(f"{name} is damaged: {damaged!r} in it has another checksum")
        verified.append("archive")
    if not verified:
        raise Wrong(f"Nobody says how large {name} is, so it could not be verified")
    return tuple(verified)


def checksum(path: Path, kind: str, tell: Progress = silent) -> str:
    """Hash a file.

    Args:
        path: The file.
        kind: "sha256", "md5" or "git-sha1": sha1 of git's header and the content, as `git hash-object` prints it.
        tell: Called with "verifying", the bytes so far, and all bytes.

    Raises:
        DataError: The kind is unknown.
    """
    if kind not in ALGORITHMS:
        raise DataError(f"The publisher gives a checksum of kind {kind!r}, but {', '.join(ALGORITHMS)} are known.")
    size, done = path.stat().st_size, 0
    hasher = hashlib.new("sha1" if kind == "git-sha1" else kind, usedforsecurity=False)
    if kind == "git-sha1":
        hasher.update(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
            done += len(block)
            tell("verifying", done, size)
    return hasher.hexdigest()
