"""The pocket picture set: concepts × exemplars in exactly the folder layout of THINGS."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eegrecon.errors import DataError
from eegrecon.pocket.drawings import ATTRIBUTION, Drawing, concepts, render
from eegrecon.pocket.scenes import scene

if TYPE_CHECKING:
    from PIL import Image

RECIPE = "recipe.json"
SPARE_SEED = 64_000  # a stream of scenes that no set with a small seed ever draws from
VERSION = 1  # raise it when the same seed would give other pictures


@dataclass(frozen=True)
class Recipe:
    """All that decides what the pictures look like; stored beside them."""

    train_concepts: int
    test_concepts: int
    exemplars: int
    size: int
    seed: int
    version: int = VERSION


def chosen(side: str, count: int) -> list[Drawing]:
    """Return ``count`` concepts of one side (0 = all), spread evenly over the alphabet.

    Raises:
        DataError: more were asked for than there are.
    """
    pool = [drawing for drawing in concepts() if drawing.side == side]
    if count > len(pool):
        raise DataError(
            f"pictures.{side}_concepts is {count}, but the pocket set has {len(pool)} {side} concepts; ask for fewer"
        )
    count = count or len(pool)
    return [pool[(i * len(pool)) // count] for i in range(count)]


def picture(drawing: Drawing, exemplar: int, *, size: int, seed: int) -> Image.Image:
    """Draw one exemplar of a concept; styles alternate with the exemplar.

    Args:
        drawing: the concept.
        exemplar: counts from 0.
        size: side in pixels.
        seed: seed of the whole set.
    """
    import numpy as np

    code = zlib.crc32(drawing.concept.encode())
    styles = drawing.styles()
    style = styles[(exemplar + code) % len(styles)]
    return scene(render(style, getattr(drawing, style)), np.random.default_rng([seed, code, exemplar]), size)


def spare_scene(drawing: Drawing, number: int, *, size: int) -> Image.Image:
    """Draw a scene for training the pocket weights: never equal to a picture of the set, and more varied.

    Half of the drawings are mirrored and half get another hue, so that shape, colour and concept come apart.

    Args:
        drawing: any drawing.
        number: counts from 0; styles alternate.
        size: side in pixels.
    """
    import numpy as np
    from PIL import Image, ImageOps

    rng = np.random.default_rng([SPARE_SEED, zlib.crc32(drawing.concept.encode()), number])
    styles = drawing.styles()
    style = styles[number % len(styles)]
    art = render(style, getattr(drawing, style))
    if rng.random() < 0.5:
        art = ImageOps.mirror(art)
    if rng.random() < 0.5:
        shift = int(rng.integers(256))
        hue, saturation, value = art.convert("RGB").convert("HSV").split()
        hue = hue.point([(level + shift) % 256 for level in range(256)])
        tinted = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        tinted.putalpha(art.getchannel("A"))
        art = tinted
    return scene(art, rng, size)


def render_set(
    images_root: Path,
    *,
    train_concepts: int,
    test_concepts: int,
    exemplars: int,
    size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render the set under ``images_root/{training_images,test_images}/00001_concept/concept_01b.jpg``.

    A finished set with the same recipe is left as it is. Pictures are drawn in a neighbouring folder that takes the
    final name at the end, so a killed run leaves nothing that looks finished.

    Args:
        images_root: the ``images_set`` folder.
        train_concepts: how many training concepts (0 = all 544).
        test_concepts: how many test concepts (0 = all 200); one picture each.
        exemplars: pictures per training concept.
        size: side in pixels.
        seed: decides every scene.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: the folder holds pictures of another recipe.
    """
    recipe = Recipe(train_concepts, test_concepts, exemplars, size, seed)
    if images_root.exists():
        found = images_root / RECIPE
        have = json.loads(found.read_text()) if found.is_file() else None
        if have == asdict(recipe):
            return
        raise DataError(
            f"{images_root} holds pictures of another recipe: wanted {asdict(recipe)}, found {have}; "
            "delete that folder or choose another data.root"
        )
    partial = images_root.with_name(images_root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    plan = [("training_images", chosen("train", train_concepts), exemplars)]
    plan += [("test_images", chosen("test", test_concepts), 1)]
    total = sum(len(drawings) * count for _, drawings, count in plan)
    done = 0
    for folder, drawings, count in plan:
        for number, drawing in enumerate(drawings, start=1):
            home = partial / folder / f"{number:05d}_{drawing.concept}"
            home.mkdir(parents=True)
            for exemplar in range(count):
                # THINGS names the first picture of a concept 01b and the others 02s, 03s, …
                name = f"{drawing.concept}_{exemplar + 1:02d}{'s' if exemplar else 'b'}.jpg"
                picture(drawing, exemplar, size=size, seed=seed).save(home / name, quality=95, subsampling=0)
                done += 1
                if progress:
                    progress(done, total)
    (partial / "ATTRIBUTION.md").write_text(ATTRIBUTION, encoding="utf-8")
    (partial / RECIPE).write_text(json.dumps(asdict(recipe), indent=1))
    partial.rename(images_root)
