"""Find out what a path is, and let the right reader look at it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from eegrecon.analysis import foreign
from eegrecon.analysis.contents import Contents, Progress, check, own_folder, pictures, set_folder
from eegrecon.data.layout import IMAGES_FOLDER
from eegrecon.data.sources import Recording, check_pair
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
    if own is not None and own is not set_folder:
        return own
    files = _recordings(path)
    if own is None:
        return _many(files) if files or (path / IMAGES_FOLDER).is_dir() else None

    def read(path: Path, progress: Progress) -> Contents:
        found = own(path, progress)
        return _include_files(found, path, files, progress)

    return read


def _recordings(path: Path) -> list[Path]:
    """Files below a folder that some reader knows; stores and pictures are looked at as folders."""
    skipped = {path / name for name in (IMAGES_FOLDER, "trials", "targets", "things")}
    inside = (file for part in sorted(path.iterdir()) if part not in skipped for file in _files(part))
    return [file for file in inside if _file(file) is not None]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _many(files: list[Path]) -> Callable[[Path, Progress], Contents]:
    """A folder of recordings: what each file is, the problems of all, the mean response of the first."""

    def read(path: Path, progress: Progress) -> Contents:
        found = Contents(f"a folder of {len(files)} files")
        if (path / IMAGES_FOLDER).is_dir():
            found.include(IMAGES_FOLDER, pictures(path / IMAGES_FOLDER, progress))
        return _include_files(found, path, files, progress)

    return read


def _include_files(found: Contents, path: Path, files: list[Path], progress: Progress) -> Contents:
    """Each file, and whether those of one subject (one folder) belong together."""
    opened: dict[Path, Recording] = {}
    for file in files:
        part = examine(file, progress)
        found.include(str(file.relative_to(path)), part)
        if part.recording is None:
            continue
        other = opened.setdefault(file.parent, part.recording)
        if other is not part.recording:
            check(found, lambda one=part.recording, two=other: check_pair(two, one))  # type: ignore[misc]
    return found


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
