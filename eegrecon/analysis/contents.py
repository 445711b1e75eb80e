"""What a file or folder is, what is in it and what is wrong with it: the stores, runs and pictures of eegrecon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eegrecon.analysis.evoked import TrialScan
from eegrecon.artifacts import MANIFEST, read_manifest
from eegrecon.data.images import FOLDERS, SUFFIXES, ImageSet
from eegrecon.data.layout import IMAGES_FOLDER, IMAGES_JSON
from eegrecon.data.sources import Recording
from eegrecon.data.targets import TargetStore
from eegrecon.data.trials import HEADER, PARTITIONS, TrialStore
from eegrecon.errors import EegreconError

Progress = Callable[[int, int], None]  # (done, total) of what is being read
BLOCK_BYTES = 64_000_000


@dataclass
class Contents:
    """What `examine` found.

    Attributes:
        kind: What it is, in a few words.
        facts: Name to value, as text.
        problems: What is wrong, one sentence each; empty if nothing is.
        scan: The trials' mean response, if there are any.
        recording: A recording that its reader has opened, to be checked against its partner.
    """

    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    scan: TrialScan | None = None
    recording: Recording | None = None

    def include(self, name: str, part: Contents) -> None:
        """Add a part: a line of what it holds, its problems, and its mean response if there is none yet."""
        sides = [f"{side}: {part.facts[side]}" for side in ("train", "test", "data") if side in part.facts]
        state = "" if not part.problems else "DAMAGED; "
        self.facts[name] = state + "; ".join([part.kind, *sides])
        self.problems += part.problems
        self.scan = self.scan or part.scan


def trial_store(path: Path, progress: Progress) -> Contents:
    """A trial store: its header, the hash of every file, every trial."""
    found = Contents("trial store")
    images = None
    if (path.parent.parent / IMAGES_JSON).is_file():
        images = check(found, lambda: ImageSet.from_root(path.parent.parent))
    store = check(found, lambda: TrialStore(path, images))
    if store is None:
        return found
    found.facts |= {
        "set, subject": f"{store.set}, {store.subject}",
        "channels": channels_text(store.ch_names),
        "time": time_text(store.tmin, store.n_times, store.sfreq),
        "unit": store.unit,
        "preprocessing": json.dumps(store.header["preprocessing"]),
    }
    scan = TrialScan(store.ch_names, store.sfreq, store.tmin, store.unit)
    for partition in PARTITIONS:
        if f"{partition}_eeg.npy" not in store.header["files"]:
            continue
        side = check(found, lambda name=partition: store.open(name, verify=True))  # type: ignore[misc]
        if side is None:
            continue
        n, repetitions = side.eeg.shape[:2]
        found.facts[partition] = f"{n} pictures x {repetitions} repetitions, {side.eeg.dtype}"
        for block in blocks_of(side.eeg, progress):
            scan.add(block.reshape(-1, *block.shape[2:]))
    return with_scan(found, scan)


def target_store(path: Path, progress: Progress) -> Contents:
    """A target store: its header, the hash and every value of its files."""
    found = Contents("target store")
    store = check(found, lambda: TargetStore(path))
    if store is None:
        return found
    found.facts |= {key: str(store.header[key]) for key in ("kind", "model", "weights_tag", "layer", "transform")}
    found.facts["one target"] = f"{store.shape}, stored as the model gave it"
    for partition in ("train", "test"):
        opened = check(found, lambda name=partition: store.open(name, verify=True))  # type: ignore[misc]
        if opened is None:
            continue
        values = opened[0]
        found.facts[partition] = f"{len(values)} pictures, {values.dtype}"
        bad = sum(int((~np.isfinite(block)).sum()) for block in blocks_of(values, progress))
        if bad:
            found.problems.append(
                f"{path / f'{partition}.npy'} holds {bad} NaN or infinite values, where only finite numbers may stand: "
                "make it again with `eegrecon extract-targets --overwrite`."
            )
    return found


def stage_directory(path: Path, progress: Progress) -> Contents:
    """A finished stage: its manifest, and the hash of every file it lists."""
    found = Contents("stage directory")
    if check(found, lambda: read_manifest(path)) is None:
        return found
    manifest = read_manifest(path, verify=False)
    found.kind = f"stage directory of {manifest.stage}"
    found.facts |= {
        "command": manifest.command,
        "made": f"{manifest.created} by eegrecon {manifest.versions.get('eegrecon', 'unknown')} on {manifest.device}",
        "seed": str(manifest.seed),
        "inputs": ", ".join(manifest.inputs) or "none",
        "files": f"{len(manifest.outputs)}, every one unchanged",
        **{name: _number(value) for name, value in manifest.metrics.items()},
    }
    return found


def run_directory(path: Path, progress: Progress) -> Contents:
    """A run: which of its stages are finished and unchanged."""
    found = Contents("run directory")
    for stage in STAGE_FOLDERS:
        if not (path / stage).is_dir():
            continue
        if (path / stage / MANIFEST).is_file():
            part = stage_directory(path / stage, progress)
            found.facts[stage] = "finished" if not part.problems else "damaged"
            found.problems += part.problems
        else:
            found.facts[stage] = "unfinished; the same command continues it"
    return found


def pictures(path: Path, progress: Progress) -> Contents:
    """`training_images` and `test_images`: names, order, and whether every picture can be read."""
    from PIL import Image

    found = Contents("pictures in the layout of THINGS")
    names: dict[str, set[str]] = {}
    for partition, folder in FOLDERS.items():
        home = path / folder
        if not home.is_dir():
            found.problems.append(f"the folder {home} is missing; expected both {' and '.join(FOLDERS.values())}.")
            continue
        concepts = sorted(item for item in home.iterdir() if item.is_dir())
        files = [file for concept in concepts for file in sorted(concept.iterdir())]
        for concept in concepts:
            number, _, name = concept.name.partition("_")
            if not number.isdigit() or not name:
                found.problems.append(
                    f"the folder {concept} is not named like 00001_aardvark: rename it, since the order of folders is "
                    "the order of the EEG's conditions."
                )
            names.setdefault(partition, set()).add(name)
        sizes: dict[tuple[int, int], int] = {}
        for i, file in enumerate(files):
            progress(i, len(files))
            if file.suffix.lower() not in SUFFIXES:
                found.problems.append(f"{file} is no picture ({', '.join(SUFFIXES)}): remove it.")
                continue
            try:
                with Image.open(file) as image:
                    image.load()
                    sizes[image.size] = sizes.get(image.size, 0) + 1
            except OSError as error:
                found.problems.append(f"the picture {file} cannot be read ({error}): copy it again.")
        shapes = ", ".join(f"{count} of {w} x {h}" for (w, h), count in sorted(sizes.items())[:3])
        found.facts[partition] = f"{len(concepts)} concepts, {len(files)} files ({shapes} pixels)"
        counts = sorted({sum(1 for _ in concept.iterdir()) for concept in concepts})
        if len(counts) > 1:
            found.problems.append(
                f"the concepts under {home} have between {counts[0]} and {counts[-1]} files, expected the same number "
                "for each: a picture is missing or foreign."
            )
    both = names.get("train", set()) & names.get("test", set())
    if both:
        found.problems.append(
            f"{len(both)} concepts are in training and test pictures alike ({', '.join(sorted(both)[:3])}…), expected "
            "none: the test would not be zero-shot."
        )
    return found


def set_folder(path: Path, progress: Progress) -> Contents:
    """A set's folder `<root>/<set>`: its picture list against the pictures, and the stores it holds."""
    found = Contents("a set's folder")
    images = check(found, lambda: ImageSet.from_root(path))
    if images is not None:
        found.facts["pictures"] = f"{len(images.train_index)} training, {len(images.test_index)} test"
        missing = [record.path for record in images.records if not (path / record.path).is_file()]
        if missing:
            found.problems.append(
                f"{len(missing)} of the {len(images)} pictures that {path / IMAGES_JSON} lists are missing (the first "
                f"is {missing[0]}): copy them back, or make the list again with `eegrecon prepare-data`."
            )
    for kind, reader in (("trials", trial_store), ("targets", target_store)):
        for store in sorted(folder for folder in (path / kind).glob("*") if folder.is_dir()):
            name = f"{kind}/{store.name}"
            if (store / HEADER).is_file():
                found.include(name, reader(store, progress))
            else:
                found.facts[name] = "unfinished; the same command continues it"
    if (path / IMAGES_FOLDER).is_dir():
        found.include(IMAGES_FOLDER, pictures(path / IMAGES_FOLDER, progress))
    return found


STAGE_FOLDERS = ("encoder", "prior", "reconstruct", "evaluate")


def own_folder(path: Path) -> Callable[[Path, Progress], Contents] | None:
    """Which of the readers above fits a folder, or None if it is none of eegrecon's."""
    if (path / HEADER).is_file():
        try:
            header = json.loads((path / HEADER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            header = {}
        return target_store if "kind" in header else trial_store
    if (path / MANIFEST).is_file():
        return stage_directory
    if (path / IMAGES_JSON).is_file():
        return set_folder
    if any((path / folder).is_dir() for folder in FOLDERS.values()):
        return pictures
    if any((path / stage).is_dir() for stage in STAGE_FOLDERS):
        return run_directory
    if path.parent.name == "trials" and (path / "train_eeg.npy").is_file():
        return trial_store
    return None


def with_scan(found: Contents, scan: TrialScan) -> Contents:
    """Add what a scan over the trials says; returns `found`."""
    if scan.n_trials:
        found.facts["single-trial RMS"] = f"{np.median(scan.rms):.3g} {scan.unit} (median channel)"
        found.problems += scan.problems()
        if scan.n_trials > scan.not_finite:
            found.scan = scan
    return found


def blocks_of(values: np.ndarray, progress: Progress) -> Iterator[np.ndarray]:
    """Rows of a (mapped) array in blocks of some 64 MB."""
    step = max(1, BLOCK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):
        progress(start, len(values))
        yield np.asarray(values[start : start + step])
    progress(len(values), len(values))


def channels_text(ch_names: Any) -> str:
    """How many channels, and their first and last names."""
    names = list(ch_names)
    return f"{len(names)}: {', '.join(names if len(names) < 8 else [*names[:2], '…', names[-1]])}"


def time_text(tmin: float, n_times: int, sfreq: float) -> str:
    """Window and sampling rate in words."""
    return f"{tmin:g} to {tmin + (n_times - 1) / sfreq:g} s, {n_times} samples at {sfreq:g} Hz"


def _number(value: Any) -> str:
    value = value.get("value", value) if isinstance(value, Mapping) else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check(found: Contents, read: Callable[[], Any]) -> Any:
    """What `read` gives, or None and one more problem."""
    try:
        return read()
    except EegreconError as error:
        found.problems.append(str(error))
        return None
