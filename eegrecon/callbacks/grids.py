"""Picture grids: what was seen above what was reconstructed, as a PNG and in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import atomic_write

if TYPE_CHECKING:
    import torch

INK, FAINT, PAPER = (34, 34, 34), (120, 120, 120), (255, 255, 255)


def picture_grid(
    rows: Mapping[str, Sequence[Any]],
    captions: Sequence[str],
    *,
    columns: int = 8,
    cell: int = 128,
    title: str = "",
    footer: str = "",
) -> Any:
    """Draw rows of pictures under each other, wrapped into blocks of `columns`.

    Args:
        rows: Label to n PIL pictures each, top row first, e.g. {"seen": …, "from EEG": …}.
        captions: n captions, one above each column of a block.
        columns: Pictures per line.
        cell: Height and width a picture is shown at, pixels.
        title: A line at the top.
        footer: A line at the bottom (credits).

    Returns:
        A PIL picture.

    Raises:
        ValueError: Rows and captions differ in length, or are empty.
    """
    from PIL import Image, ImageDraw, ImageFont

    n = len(captions)
    if n == 0 or not rows or any(len(pictures) != n for pictures in rows.values()):
        raise ValueError(f"every row needs {n} pictures, got { {label: len(p) for label, p in rows.items()} }")
    font = ImageFont.load_default(size=max(10, cell // 9))
    small = ImageFont.load_default(size=max(9, cell // 11))
    columns = min(columns, n)
    gap = max(2, cell // 32)
    margin = max(12, cell // 6)
    label_width = max(int(font.getlength(label)) for label in rows) + margin
    caption_height = 2 * gap + cell // 8
    block_height = caption_height + len(rows) * (cell + gap) + margin
    n_blocks = -(-n // columns)
    top = margin + (cell // 4 if title else 0)
    width = margin + label_width + columns * (cell + gap) + margin
    height = top + n_blocks * block_height + (cell // 6 if footer else 0)
    width = max(width, int(small.getlength(footer)) + 2 * margin, int(font.getlength(title)) + 2 * margin)
    grid = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(grid)
    if title:
        draw.text((margin, margin), title, fill=INK, font=font)
    if footer:
        draw.text((margin, height - cell // 6 - gap), footer, fill=FAINT, font=small)
    for position in range(n):
        block, column = divmod(position, columns)
        x, y = margin + label_width + column * (cell + gap), top + block * block_height
        caption = _fit(captions[position], small, cell)
        draw.text((x + cell / 2, y + caption_height - gap), caption, fill=INK, font=small, anchor="mb")
        for row, (label, pictures) in enumerate(rows.items()):
            y_row = y + caption_height + row * (cell + gap)
            if column == 0:
                draw.text((margin, y_row + cell / 2), label, fill=FAINT, font=font, anchor="lm")
            picture = pictures[position].convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC)
            grid.paste(picture, (x, y_row))
    return grid


def _fit(text: str, font: Any, width: int) -> str:
    """Shorten a text with an ellipsis until it fits."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def to_pil(picture: torch.Tensor) -> Any:
    """A (3, h, w) tensor in [0, 1] as an 8-bit PIL picture."""
    from PIL import Image

    array = (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).contiguous().numpy())


def save_picture(picture: Any, path: Path) -> None:
    """Write a PIL picture as PNG, atomically."""
    with atomic_write(path) as file:
        picture.save(file, format="PNG", optimize=True)


def log_picture(logger: Any, tag: str, picture: Any, step: int = 0) -> None:
    """Show a PIL picture in TensorBoard; other loggers (and none) are left alone."""
    import numpy as np
    from lightning.pytorch.loggers import TensorBoardLogger

    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, np.asarray(picture), global_step=step, dataformats="HWC")
