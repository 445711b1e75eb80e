"""`prepare-data`: make a set's picture list and its subjects' trial stores, from the source that the config names.

`directory` is the set's folder `<root>/<set>`. Each subject's store `trials/sub-XX` is a stage directory of its own:
its manifest comes last, and one subject's store does not depend on which others were asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eegrecon.artifacts import Manifest
from eegrecon.errors import ConfigError

POCKET = "pocket"


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Make the trial store of every subject in `cfg.data.subjects` (pocket: the pictures too).

    Args:
        cfg: A `PrepareDataConfig`.
        directory: The set's folder `<root>/<set>`.
        command: The command line, for the manifests.
        overwrite: Replace what was made with another config or from other files.

    Returns:
        The manifest of the last subject.

    Raises:
        ArtifactError: A store of another config or of other files is there.
        ConfigError: The source's arguments or the set do not fit, or a subject's number is below 1.
        DataError: The source's files or the pictures are missing or damaged, or the disk is too small.
    """
    if not cfg.data.subjects or min(cfg.data.subjects) < 1:
        raise ConfigError(f"data.subjects must list one or more numbers from 1, but it is {list(cfg.data.subjects)}.")
    if cfg.source.name == POCKET:
        from eegrecon.stages.prepare_pocket import run as prepare
    else:
        from eegrecon.stages.prepare_recordings import run as prepare
    return prepare(cfg, directory=Path(directory), command=command, overwrite=overwrite)
