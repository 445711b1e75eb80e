"""Refuse before anything is written what the disk cannot hold."""

from __future__ import annotations

import shutil
from pathlib import Path

from eegrecon.errors import DataError


def require_free(folder: Path, needed: int, purpose: str) -> None:
    """Check that the disk under `folder` has `needed` bytes free; the folder need not exist yet.

    Raises:
        DataError: Says how much is needed, and how much is free.
    """
    place = next(item for item in (folder, *folder.absolute().parents) if item.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DataError(
            f"prepare-data needs {needed / 1e9:.1f} GB under {folder} {purpose}, but the disk has {free / 1e9:.1f} GB "
            "free: make room, choose another data.root, or ask for fewer subjects."
        )
