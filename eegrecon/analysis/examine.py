"""Find out what a path is, and let the right reader look at it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from eegrecon.analysis import foreign
from eegrecon.analysis.contents import Contents, Progress, own_folder
from eegrecon.errors import DataError, EegreconError

MAGIC_NPY, MAGIC_ZIP, MAGIC_PICKLE = b"\x93NUMPY", b"PK", b"\x80"
KNOWN = (
    "trial and target stores, stage, run and set folders, THINGS picture folders, recordings of THINGS-EEG2 and "
    "THINGS-MEG (.npy, .pt, .pkl, .fif), feature files, .safetensors"
)


def examine(path: Path, progress: Progress) -> Contents:
    """Look at a file or folder; every fault found becomes one of `Contents.problems`.

    Args:
        path: What to look at.
        progress: Called with (done, total).

    Raises:
        DataError: Nothing is there, or it is nothing that eegrecon knows.
    """
    if not path.exists():
        raise DataError(f"There is nothing at {path}: check the path.")
    reader = _folder(path) if path.is_dir() else _file(path)
    if reader is None:
        raise DataError(f"{path} is nothing that eegrecon knows; it knows {KNOWN}.")
    try:
        return reader(path, progress)
    except EegreconError as error:
        return Contents("damaged or unknown", problems=[str(error)])
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        said = f"{path} holds values that no recording has ({type(error).__name__}: {error}): get it again."
        return Contents("damaged or unknown", problems=[said])


def _folder(path: Path) -> Callable[[Path, Progress], Contents] | None:
    own = own_folder(path)
    if own is not None:
        return own
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and _file(file) is not None]
    return _many(files) if files else None


def _many(files: list[Path]) -> Callable[[Path, Progress], Contents]:
    """A folder of recordings: what each file is, the problems of all, the mean response of the first."""

    def read(path: Path, progress: Progress) -> Contents:
        found = Contents(f"a folder of {len(files)} files")
        for file in files:
            part = examine(file, progress)
            found.facts[str(file.relative_to(path))] = part.kind + ("" if not part.problems else ": DAMAGED")
            found.problems += part.problems
            found.scan = found.scan or part.scan
        return found

    return read


def _file(path: Path) -> Callable[[Path, Progress], Contents] | None:
    if path.suffix == ".safetensors":
        return foreign.tensors
    if path.name.endswith((".fif", ".fif.gz")):
        return foreign.fif_epochs
    with path.open("rb") as file:
        start = file.read(128)
    if start.startswith(MAGIC_NPY):
        return foreign.pickled if b"'|O'" in start or b"'O'" in start else foreign.plain_array
    if start.startswith(MAGIC_ZIP) and path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        return foreign.torch_file if _has_tensors(path) else foreign.pickled
    if start.startswith(MAGIC_PICKLE) or path.suffix in (".pkl", ".npy"):
        return foreign.pickled
    return None


def _has_tensors(path: Path) -> bool:
    """Tensors go through torch's safe loader, NumPy arrays (UBP) through ours; a damaged zip through ours as well."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/data/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False
