"""`prepare-data` from recordings: published files in any known layout become trial stores, streamed and checked.

The pictures must lie in `<root>/<set>/images_set/{training_images,test_images}`; they are listed and checked, not made.
Where THINGS-MEG's epochs are read and that folder is absent, THINGS' own flat folders are linked there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import (
    CONFIG,
    MANIFEST,
    STARTED,
    Manifest,
    atomic_write,
    new_manifest,
    open_stage,
    read_manifest,
    write_manifest,
)
from eegrecon.config import SOURCES, config_hash, to_dict, to_yaml
from eegrecon.data.conversion import convert, store_bytes
from eegrecon.data.images import FOLDERS, ImageSet, build_images_json
from eegrecon.data.layout import IMAGES_FOLDER, IMAGES_JSON, subject_name, trial_dir
from eegrecon.data.sources import SIDES, TrialSource
from eegrecon.data.trials import CLAIM, HEADER
from eegrecon.errors import DataError, EegreconError
from eegrecon.registry import check_args, lookup, resolve
from eegrecon.stages.disk import require_free
from eegrecon.stages.progress import progress_bars

if TYPE_CHECKING:
    from rich.progress import Progress

STAGE = "prepare-data"
SCHEME = 1  # of the conversion: rows that a killed run of another scheme left are not kept
WORK = ".work"
SPARE_BYTES = 100_000_000
OUTPUTS = (HEADER, *(f"{side}_{part}.npy" for side in SIDES for part in ("eeg", "image_index", "session")))


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """List the pictures and convert every subject in `cfg.data.subjects`; see `prepare_data.run`.

    All sources are opened, and the disk is checked, before the first store is written. A finished store whose source
    files are no longer there is up to date.
    """
    with progress_bars() as progress:
        _link_pictures(cfg, directory)
        images = _pictures(directory, progress)
        sources = {subject: _open(cfg, directory, subject, images, overwrite) for subject in cfg.data.subjects}
        _check_disk(directory, sources, overwrite)
        for subject, source in sources.items():
            manifest = _subject(cfg, directory, subject, source, images, command, overwrite, progress)
    return manifest


def _link_pictures(cfg: Any, directory: Path) -> None:
    """Make `images_set` where it is absent and the source knows which of THINGS' pictures were shown.

    Raises:
        ConfigError: The source's arguments are wrong.
        DataError: The recording, THINGS' list or a picture is missing or damaged.
    """
    if cfg.source.name != "meg_fif" or (directory / IMAGES_FOLDER).exists():
        return
    from eegrecon.data.things_meg import link_pictures

    args = cfg.source.args
    check_args(lookup(SOURCES, cfg.source.name), cfg.source, dict.fromkeys(("subject", "images", "work")))
    link_pictures(directory, cfg.data.subjects[0], str(args["path"]), str(args.get("tables", "")))


def _pictures(directory: Path, progress: Progress) -> ImageSet:
    """List the pictures; those of a new list are decoded once, to find the unreadable ones now.

    Raises:
        DataError: A folder is missing or ill-named, or a picture cannot be read.
    """
    for folder in FOLDERS.values():
        home = directory / IMAGES_FOLDER / folder
        if not home.is_dir():
            raise DataError(
                f"The picture folder {home} does not exist: put (or link) the THINGS pictures there, one folder a "
                "concept, such as 00001_aardvark (`eegrecon download --list` says where to get them)."
            )
    task = progress.add_task("pictures", total=None)
    images = build_images_json(directory)
    seen = directory / "cache" / f"readable-{images.sha256[:16]}"
    progress.update(task, total=len(images))
    if not seen.is_file():
        from PIL import Image

        for record in images.records:
            try:
                with Image.open(directory / record.path) as picture:
                    picture.draft("RGB", (64, 64))  # JPEG: every byte is read, but few pixels are made
                    picture.load()
            except OSError as error:
                raise DataError(
                    f"The picture {directory / record.path} cannot be read ({error}): copy it again."
                ) from error
            progress.advance(task)
        with atomic_write(seen):
            pass
    progress.update(task, completed=len(images))
    return images


def _open(cfg: Any, directory: Path, subject: int, images: ImageSet, overwrite: bool) -> TrialSource | None:
    """The subject's source; None if its files are gone and its store is finished.

    Raises:
        ConfigError: The source's arguments are wrong.
        DataError: A file is missing or damaged.
    """
    home = trial_dir(directory, subject)
    try:
        return resolve(SOURCES, cfg.source, subject=subject, images=images, work=home / WORK)
    except DataError:
        if overwrite or not (home / MANIFEST).is_file():
            raise
        files = [Path(record["path"]) for record in _recorded(home).values()]
        if any(file.exists() for file in files):
            raise
        return None


def _subject(
    cfg: Any,
    directory: Path,
    subject: int,
    source: TrialSource | None,
    images: ImageSet,
    command: str,
    overwrite: bool,
    progress: Progress,
) -> Manifest:
    started = time.monotonic()
    # A store's identity is its own subject, pictures, source files and arguments; where the files lie is not hashed.
    own = {
        "data": {"set": cfg.data.set, "root": cfg.data.root, "subjects": [subject]},
        "source": {"name": cfg.source.name, "args": to_dict(cfg.source.args)},
    }
    home = trial_dir(directory, subject)
    inputs = {IMAGES_JSON: {"path": f"../../{IMAGES_JSON}", "manifest_sha256": images.sha256}}
    inputs |= _recorded(home) if source is None else _files(source.sources)
    same_work = _started_alike(home, config_hash(own), inputs)
    task = progress.add_task(f"{subject_name(subject)}: trials", total=1)
    state = open_stage(home, STAGE, config_hash(own), to_yaml(own), inputs, overwrite)
    if state == "up_to_date" or source is None:
        progress.update(task, completed=1)
        return read_manifest(home, verify=False)
    if overwrite:
        _remove_old(home)
    elif not same_work:
        shutil.rmtree(home / WORK, ignore_errors=True)
    claim = {
        "scheme": SCHEME,
        "config": config_hash(own),
        "inputs": {name: record["manifest_sha256"] for name, record in inputs.items()},
    }
    progress.update(task, total=sum(n * repetitions for n, repetitions in source.counts().values()))
    try:
        _prepare(source, subject, progress)
        convert(
            source,
            home,
            set_name=cfg.data.set,
            images=images,
            claim=claim,
            progress=lambda trials: progress.advance(task, trials),
        )
        _check_unchanged(source, inputs)
    except EegreconError:
        _remove_old(home)
        for name in (CONFIG, STARTED):
            (home / name).unlink(missing_ok=True)
        if not any(home.iterdir()):
            home.rmdir()
        raise
    shutil.rmtree(home / WORK, ignore_errors=True)
    manifest = new_manifest(
        STAGE,
        command=command,
        config_hash=config_hash(own),
        seed=cfg.seed,
        inputs=inputs,
        data={
            "set": cfg.data.set, "subjects": [subject], "ch_names": list(source.ch_names), "sfreq": source.sfreq,
            "n_times": source.n_times, "window": [source.tmin, source.tmin + source.n_times / source.sfreq],
            "unit": source.unit,
        },
        outputs={name: {} for name in OUTPUTS},
        wall_seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip
    return write_manifest(home, manifest)


def _started_alike(home: Path, cfg_hash: str, inputs: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether the folder's unfinished run had the same config and files, so that its intermediate files are good."""
    try:
        started = json.loads((home / STARTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = {name: record["manifest_sha256"] for name, record in inputs.items()}
    return bool(started.get("config_hash") == cfg_hash and started.get("inputs") == wanted)


def _prepare(source: TrialSource, subject: int, progress: Progress) -> None:
    if not source.work_bytes:
        return
    task = progress.add_task(f"{subject_name(subject)}: epochs", total=None)
    source.prepare(lambda done, total: progress.update(task, completed=done, total=total))


def _files(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """What a manifest says of the source's files."""
    return {
        name: {"path": record["path"], "manifest_sha256": record["sample_sha256"]} for name, record in sources.items()
    }


def _recorded(home: Path) -> dict[str, Any]:
    """What the finished store's manifest says of its source's files."""
    inputs = read_manifest(home, verify=False).inputs
    return {name: record for name, record in inputs.items() if name != IMAGES_JSON}


def _check_unchanged(source: TrialSource, inputs: Mapping[str, Mapping[str, str]]) -> None:
    for name, record in _files(source.sources).items():
        if record["manifest_sha256"] != inputs[name]["manifest_sha256"]:
            raise DataError(
                f"{record['path']} changed while it was read: wait until it is complete and run the command again."
            )


def _remove_old(home: Path) -> None:
    for old in [home / HEADER, home / CLAIM, *home.glob("*.npy"), *home.glob(".*.partial")]:
        old.unlink(missing_ok=True)
    shutil.rmtree(home / WORK, ignore_errors=True)


def _check_disk(directory: Path, sources: Mapping[int, TrialSource | None], overwrite: bool) -> None:
    """Refuse before anything is written when the stores asked for do not fit on the disk.

    Raises:
        DataError: Says how much is needed and how much is free.
    """
    needed, waiting = 0, 0
    for subject, source in sources.items():
        home = trial_dir(directory, subject)
        if source is None or ((home / MANIFEST).is_file() and not overwrite):
            continue
        there = [file for pattern in ("*.npy", ".*.partial", f"{WORK}/*.npy") for file in home.glob(pattern)]
        needed += store_bytes(source) + source.work_bytes
        needed -= sum(file.stat().st_size for file in there)
        waiting += 1
    if waiting:
        require_free(directory, needed + SPARE_BYTES, f"for {waiting} subject(s)")
