"""The pictures of a look-alike set: THINGS' folders at any number of concepts, and THINGS-MEG's tables of pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from eegrecon.errors import DataError
from eegrecon.pocket.drawings import ATTRIBUTION, Drawing, concepts
from eegrecon.pocket.pictures import chosen, picture

IMAGES_FOLDER = "images_set"
RECIPE = "look-alike.json"
FAR = 1000  # exemplar numbers of a drawing's second concept start here, so its scenes are others


@dataclass(frozen=True)
class Concept:
    """One concept of a look-alike set: a name, the drawing that shows it and which reuse of the drawing it is."""

    name: str
    drawing: Drawing
    reuse: int


@dataclass(frozen=True)
class LookAlikeSet:
    """The pictures of one look-alike set, listed in THINGS order: training concepts, then test concepts.

    Attributes:
        concepts: training concepts (1,654 in THINGS-EEG2 and THINGS-MEG).
        test_concepts: test concepts (200), none of them a training concept.
        exemplars: pictures of a training concept (10; THINGS-MEG 12).
        meg: THINGS-MEG's test pictures are the 13th of their concept, THINGS-EEG2's the only one.
    """

    concepts: int
    test_concepts: int
    exemplars: int
    meg: bool = False

    @cached_property
    def train(self) -> list[Concept]:
        """Training concepts in alphabetical order."""
        return named("train", self.concepts)

    @cached_property
    def test(self) -> list[Concept]:
        """Test concepts in alphabetical order."""
        return named("test", self.test_concepts)

    @property
    def n_train(self) -> int:
        """Training pictures; their rows are 0 … n_train - 1, the test pictures' follow."""
        return self.concepts * self.exemplars

    @property
    def n_test(self) -> int:
        """Test pictures."""
        return self.test_concepts

    def plan(self) -> list[tuple[str, Concept, int]]:
        """Every picture in row order: path below `images_set`, concept, exemplar counted from 0."""
        rows = []
        sides = (
            ("training_images", self.train, range(self.exemplars)),
            ("test_images", self.test, self._test_exemplars),
        )
        for folder, side, exemplars in sides:
            for number, concept in enumerate(side, start=1):
                home = f"{folder}/{number:05d}_{concept.name}"
                rows += [(f"{home}/{file_name(concept.name, k)}", concept, k) for k in exemplars]
        return rows

    @property
    def _test_exemplars(self) -> range:
        return range(self.exemplars, self.exemplars + 1) if self.meg else range(1)


def file_name(concept: str, exemplar: int) -> str:
    """Name a picture as THINGS does: the first of a concept is 01b, the others are 02s, 03s and so on.

    >>> file_name("aardvark", 0), file_name("aardvark", 9)
    ('aardvark_01b.jpg', 'aardvark_10s.jpg')
    """
    return f"{concept}_{exemplar + 1:02d}{'s' if exemplar else 'b'}.jpg"


def named(side: str, count: int) -> list[Concept]:
    """Return ``count`` concepts of one side, sorted by name; beyond the pocket's own, drawings get new names.

    A drawing's second concept is called `anchor2`, as THINGS calls its second bat `bat2`.
    """
    pool = chosen(side, 0)
    taken = {drawing.concept for drawing in concepts()}
    found = [Concept(d.concept, d, 0) for d in (chosen(side, count) if count <= len(pool) else pool)]
    reuse = 1
    while len(found) < count:
        for drawing in pool[: count - len(found)]:
            name = f"{drawing.concept}{reuse + 1}"
            while name in taken:
                name += "x"
            taken.add(name)
            found.append(Concept(name, drawing, reuse))
        reuse += 1
    return sorted(found, key=lambda concept: concept.name)


def render_pictures(
    root: Path, pictures: LookAlikeSet, *, size: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Draw the set under ``root``; a finished set of the same recipe is left as it is.

    Args:
        root: the `images_set` folder; it appears when all pictures are there.
        pictures: what to draw.
        size: side in pixels (500 in THINGS-EEG2).
        seed: decides every scene.
        progress: called with (pictures done, pictures in all).

    Returns:
        The files, in row order.

    Raises:
        DataError: the folder holds other pictures.
    """
    recipe = {**asdict(pictures), "size": size, "seed": seed}
    plan = pictures.plan()
    files = [root / path for path, _, _ in plan]
    if root.exists():
        note = root / RECIPE
        have = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        if have == recipe:
            return files
        raise DataError(
            f"{root} holds other pictures: wanted {recipe}, found {have}: delete that folder or choose another --out."
        )
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for done, (path, concept, exemplar) in enumerate(plan, start=1):
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        scene = picture(concept.drawing, exemplar + FAR * concept.reuse, size=size, seed=seed)
        scene.save(partial / path, quality=95, subsampling=0)
        if progress:
            progress(done, len(plan))
    (partial / "ATTRIBUTION.md").write_text(ATTRIBUTION, encoding="utf-8")
    (partial / RECIPE).write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    partial.rename(root)
    return files
