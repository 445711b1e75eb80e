"""Where things lie inside a set's folder `<root>/<set>/`; the one home of these paths."""

from pathlib import Path

IMAGES_JSON = "images.json"
IMAGES_FOLDER = "images_set"


def subject_name(subject: int) -> str:
    """The folder name of a subject.

    >>> subject_name(8)
    'sub-08'
    """
    return f"sub-{subject:02d}"


def trial_dir(set_root: Path, subject: int) -> Path:
    """The trial store of a subject: `<set_root>/trials/sub-08`."""
    return Path(set_root) / "trials" / subject_name(subject)


def target_dir(set_root: Path, name: str) -> Path:
    """The target store of this name: `<set_root>/targets/<name>`."""
    return Path(set_root) / "targets" / name


def projector_dir(set_root: Path, name: str) -> Path:
    """The projector of this name: `<set_root>/projectors/<name>`; pictures alone made it, so every run shares it."""
    return Path(set_root) / "projectors" / name
