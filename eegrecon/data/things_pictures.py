"""THINGS as its publisher gives it, and how THINGS-MEG's pictures come out of it.

OSF jum2f holds the list of all 26,107 pictures, whose lines read `images/aardvark/aardvark_01b.jpg`, and the pictures
in one flat folder a concept. Both have had several homes: `Metadata/Image-specific/image_paths.csv` is now
`01_image-level/image-paths.csv`, and the folders lie in `Images`, `object_images` or `_image_database_things`. They are
therefore looked for by what is in them, a few folders deep.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from glob import escape
from pathlib import Path, PurePosixPath

import numpy as np

from eegrecon.data.images import FOLDERS
from eegrecon.data.layout import IMAGES_FOLDER
from eegrecon.errors import DataError

THINGS_FOLDER = "things"  # below the set's folder: where `eegrecon download things-images` puts it
TABLES = ("image_paths.csv", "image-paths.csv")
DEPTH = 4  # things/osfstorage/THINGS/Metadata/Image-specific
PARTIAL = f"{IMAGES_FOLDER}.partial"


def find_table(beside: Sequence[Path], below: Path | None) -> Path | None:
    """The list of pictures: in one of the folders `beside`, else up to four folders deep in `below`; None: nowhere."""
    for folder in beside:
        for name in TABLES:
            if (folder / name).is_file():
                return folder / name
    return None if below is None else next(filter(None, (_below(below, name) for name in TABLES)), None)


def read_table(table: Path) -> list[PurePosixPath]:
    """`concept/file` of every picture, by number from 1: that of `images/aardvark/aardvark_01b.jpg`.

    Raises:
        DataError: It is no such list.
    """
    with table.open(newline="", encoding="utf-8") as file:
        lines = [PurePosixPath(line[0].strip()) for line in csv.reader(file) if line]
    if not lines or not all(len(line.parts) > 1 and ".." not in line.parts for line in lines):
        raise DataError(f"{table} must list pictures such as images/aardvark/aardvark_01b.jpg: get it again.")
    return [PurePosixPath(*line.parts[-2:]) for line in lines]


def link_shown_pictures(set_root: Path, numbers: np.ndarray, table: Path) -> None:
    """Link the pictures of THINGS-MEG into `<set_root>/images_set`, sorted into training and test pictures.

    As in EEG_Image_decode (MEG-preprocessing/pre_possess.ipynb): test pictures are those shown most often (12 times), a
    test concept's other pictures are left out, all others are training pictures; a concept's folder is called by its
    number, which follows the list, and its name (`00001_aardvark`). Everything is there or nothing.

    Args:
        set_root: The set's folder; the pictures lie below its folder `things`.
        numbers: Number of the picture that each trial shows, (n_trials,) integers from 1; catch trials left out.
        table: THINGS' list of pictures, which has all of these numbers.

    Raises:
        DataError: A picture is not there, the numbers do not tell test from training pictures, or links cannot be made.
    """
    listed = read_table(table)
    shown = Counter(numbers.tolist())
    concept_of = {number: listed[number - 1].parent.name for number in shown}
    most = max(shown.values(), default=0)
    test_concepts = {concept_of[number] for number, count in shown.items() if count == most}
    train = {number: count for number, count in shown.items() if concept_of[number] not in test_concepts}
    if len(set(train.values())) != 1:  # one test trial lost would make a training picture of a test picture
        counts = ", ".join(map(str, sorted(set(train.values()) | {most})))
        raise DataError(
            f"The trials show pictures {counts} times, expected training pictures equally often and test pictures "
            f"equally often, but more: get the recording again, or sort the pictures into {set_root / IMAGES_FOLDER} "
            "yourself."
        )
    place_of = {name: place for place, name in enumerate(dict.fromkeys(path.parent.name for path in listed), start=1)}
    plan: list[tuple[str, PurePosixPath]] = []
    for number, count in sorted(shown.items()):
        path, concept = listed[number - 1], concept_of[number]
        if number in train or count == most:
            side = FOLDERS["train" if number in train else "test"]
            plan.append((f"{side}/{place_of[concept]:05d}_{concept}/{path.name}", path))
    example = _below(set_root / THINGS_FOLDER, plan[0][1].as_posix())
    if example is None:
        raise DataError(
            f"The pictures that were shown are neither in {set_root / IMAGES_FOLDER} nor below "
            f"{set_root / THINGS_FOLDER} ({plan[0][1]} is not there, up to {DEPTH} folders deep): unpack or link the "
            "picture archive of THINGS there (`eegrecon download things-images`), and prepare-data sorts them."
        )
    home = example.parent.parent
    absent = [path for _, path in plan if not (home / path).is_file()]
    if absent:
        raise DataError(
            f"{home} lacks {len(absent)} of the {len(plan)} pictures that were shown (such as {absent[0]}): unpack the "
            "whole picture archive of THINGS there."
        )
    _link(set_root, home, plan)


def _link(set_root: Path, home: Path, plan: Sequence[tuple[str, PurePosixPath]]) -> None:
    partial = set_root / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    flat, root = home.resolve(), set_root.resolve()
    inside = flat.is_relative_to(root)  # then the set's folder can be moved as a whole
    try:
        for target, path in plan:
            link = partial / target
            link.parent.mkdir(parents=True, exist_ok=True)
            source = flat / path
            link.symlink_to(os.path.relpath(source, (root / IMAGES_FOLDER / target).parent) if inside else source)
        partial.rename(set_root / IMAGES_FOLDER)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(
            f"The pictures in {home} cannot be linked into {set_root / IMAGES_FOLDER} ({error.strerror or error}): "
            "copy them there, one folder a concept."
        ) from error


def _below(folder: Path, tail: str) -> Path | None:
    """The file `tail` in a folder or up to four folders deep in it, the nearest; None if it is nowhere there."""
    for depth in range(DEPTH + 1):
        for found in sorted(folder.glob("*/" * depth + escape(tail))):
            if found.is_file():
                return found
    return None
