"""The record of one finished stage: what was run, on what, from what, and what came out.

`manifest.json` is written last and atomically, so its presence means success (DESIGN section 3). `artifacts` writes
and verifies it; stages fill it through `new_manifest`.
"""

import dataclasses
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass
class Manifest:
    """Everything a reader of a stage directory may ask; see `docs/design.md` section 3.

    `outputs` maps a file name, relative to the directory, to `{sha256, bytes, shape?}`: a stage may give empty dicts
    (or a shape of its own), `artifacts.write_manifest` fills them in. `inputs` maps a name to
    `{path, manifest_sha256}`; make its entries with `artifacts.input_record`.
    """

    stage: str
    command: str
    config_hash: str
    seed: int
    schema: int = SCHEMA
    created: str = ""  # UTC, ISO 8601, when the stage finished
    versions: dict[str, str] = field(default_factory=dict)  # eegrecon, python, torch, lightning
    git: dict[str, Any] = field(default_factory=dict)  # commit, dirty; empty outside a repository
    device: str = "cpu"
    world_size: int = 1
    precision: str = "32-true"
    data: dict[str, Any] = field(default_factory=dict)  # set, subjects, channels, sfreq, window, n_times, split, …
    interface: dict[str, Any] = field(default_factory=dict)  # what the next stage must match
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # the headline numbers
    selection: dict[str, Any] = field(default_factory=dict)  # epoch, monitor, value, ema
    wall_seconds: float = 0.0


def new_manifest(stage: str, *, command: str, config_hash: str, seed: int, **fields: Any) -> Manifest:
    """A manifest with time, versions and git state filled in; `fields` are the others of `Manifest`.

    Importing nothing heavy: versions come from the installed packages' metadata.
    """
    return Manifest(
        stage=stage,
        command=command,
        config_hash=config_hash,
        seed=seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions(),
        git=git_state(),
        **fields,
    )


def to_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as a plain dict."""
    return dataclasses.asdict(manifest)


def package_versions() -> dict[str, str]:
    """Versions of python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in ("eegrecon", "torch", "lightning", "diffusers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the repository this package is run from; empty for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return {}

    def ask(*words: str) -> str | None:
        done = subprocess.run([git, "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit, status = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status)} if commit else {}
