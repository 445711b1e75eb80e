"""`evaluate --eeg-embeds`: score embeddings that lie in plain files, whoever made them.

A tool, not a stage: no run directory, no config. With `--out` it leaves a folder that `compare` reads.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eegrecon.errors import ArtifactError, ConfigError, DataError

if TYPE_CHECKING:
    from eegrecon.analysis.ranks import QueryRanks

OPTION = "--eeg-embeds"  # what tells this from the verb
FILES = ("eeg_embeds", "image_embeds", "text_embeds", "image_index")
STAGE = "score-embeds"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    kinds = ".npy, .safetensors or .pt: a matrix, or a dict with one"
    add(OPTION, metavar="FILE", required=True, help=f"(queries, dim) {kinds}")
    add("--image-embeds", metavar="FILE", required=True, help="(pictures, dim) the gallery, each picture once")
    add("--text-embeds", metavar="FILE", help="(pictures, dim) the name of each picture's concept: also classify")
    add("--image-index", metavar="FILE", help="(queries,) the picture row of each query; default: row i saw picture i")
    add("--subject", type=int, default=1, metavar="N", help="whose queries they are, for compare; default 1")
    add("--draws", type=int, default=0, metavar="N", help="also draw distractors N times, as published scripts do (1)")
    add("--seed", type=int, default=0, metavar="N", help="of the draws")
    add("--out", metavar="DIR", help="write metrics.json and ranks*.safetensors, which compare reads")


def run(options: argparse.Namespace) -> int:
    """Print retrieval (and classification) scores; write them where asked.

    Returns:
        0.

    Raises:
        DataError: A file is missing, unreadable or holds no fitting array, or the arrays do not fit each other.
        ConfigError: An option makes no sense.
        ArtifactError: `--out` holds something else.
    """
    from rich.console import Console

    from eegrecon.analysis.comparison import scores_of
    from eegrecon.analysis.scoring import TASKS

    if options.draws < 0:
        raise ConfigError(f"--draws is {options.draws}, expected 0 (none) or more.")
    _check_out(options)
    ranks, gallery = _ranks(options)
    metrics: dict[str, Any] = {}
    for key, found in ranks.items():
        task, _ = TASKS[key]
        for name, score in scores_of(found.gallery).items():
            metrics[f"test/{task}_{name}"] = _entry(found, score(found), name)
        if options.draws:
            metrics |= _drawn(found, task, options)
        median = float(found.rank().quantile(0.5))
        metrics[f"test/{task}_median_rank_{found.gallery}way"] = {"value": median, "ci95": None}
    console = Console(highlight=False)
    for name, entry in metrics.items():
        interval = entry["ci95"]
        bounds = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        chance = f", chance {entry['chance']:.3f}" if "chance" in entry else ""
        console.print(f"{name.partition('/')[2]}: {entry['value']:.3f}{bounds}{chance}", markup=False)
    queries, pictures = len(ranks[""].image_index), len(ranks[""].image_index.unique())
    how = "95 % over pictures: Clopper-Pearson for top-k, bootstrap for MRR and mean rank"
    sys.stderr.write(f"eegrecon: evaluate: {queries} queries of {pictures} pictures; {how}\n")
    if options.out:
        _write(options, ranks, metrics, gallery)
    return 0


def _ranks(options: argparse.Namespace) -> tuple[dict[str, QueryRanks], str]:
    """Ranks by task, and the gallery's hash."""
    import torch

    from eegrecon.analysis.scoring import cosine_ranks
    from eegrecon.data.embed_files import read_index, read_matrix

    arrays = {}
    for role in ("eeg", "image", "text"):
        file = getattr(options, f"{role}_embeds")
        if file is not None:
            arrays[role], name = read_matrix(Path(file), role)
            taken = f" ({name})" if name else ""
            sys.stderr.write(f"eegrecon: evaluate: {role}: {file}{taken}, {arrays[role].shape}\n")
    eeg, image = arrays["eeg"], arrays["image"]
    _check_dims(options, arrays)
    _check_once(image, Path(options.image_embeds))
    if options.image_index is not None:
        index = read_index(Path(options.image_index))
        if len(index) != len(eeg):
            raise DataError(
                f"{options.image_index} has {len(index)} numbers, but {options.eeg_embeds} has {len(eeg)} rows: give "
                "one number a row."
            )
        if len(index) and not 0 <= index.min() <= index.max() < len(image):
            raise DataError(
                f"{options.image_index} names rows {index.min()} to {index.max()}, but {options.image_embeds} has rows "
                f"0 to {len(image) - 1}: count its rows from 0."
            )
    elif len(eeg) != len(image):
        repeated = len(eeg) > len(image) and len(eeg) % len(image) == 0
        guess = f" ({len(eeg) // len(image)} rows a picture?)" if repeated else ""
        raise DataError(
            f"{options.eeg_embeds} has {len(eeg)} rows, but {options.image_embeds} has {len(image)} pictures{guess}: "
            "average the rows of a picture, or say with --image-index which picture each row saw."
        )
    else:
        index = np.arange(len(eeg))
    target = torch.from_numpy(index)
    ids = {"image_index": target, "subject": torch.full((len(eeg),), options.subject)}
    queries = torch.from_numpy(eeg)
    ranks = {"": cosine_ranks(queries, torch.from_numpy(image), target, **ids)}
    if "text" in arrays:
        names, concept = np.unique(arrays["text"], axis=0, return_inverse=True)
        if len(names) < 2:
            raise DataError(f"All rows of {options.text_embeds} are equal, but classes need different names.")
        wanted = torch.from_numpy(concept.reshape(-1)[index])
        ranks["_text"] = cosine_ranks(queries, torch.from_numpy(names), wanted, **ids)
    return ranks, hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def _check_dims(options: argparse.Namespace, arrays: dict[str, np.ndarray]) -> None:
    eeg, image = arrays["eeg"], arrays["image"]
    for role in ("image", "text"):
        if role in arrays and arrays[role].shape[1] != eeg.shape[1]:
            raise DataError(
                f"{options.eeg_embeds} has embeddings of size {eeg.shape[1]}, but {getattr(options, f'{role}_embeds')} "
                f"of {arrays[role].shape[1]}: they are not of one space."
            )
    if "text" in arrays and len(arrays["text"]) != len(image):
        raise DataError(
            f"{options.text_embeds} has {len(arrays['text'])} rows, but {options.image_embeds} has {len(image)} "
            "pictures: give the name of each picture's concept, repeated where pictures share one."
        )
    if len(image) < 2:
        raise DataError(f"{options.image_embeds} has {len(image)} picture, but a gallery needs at least 2.")


def _check_once(image: np.ndarray, path: Path) -> None:
    _, first, inverse = np.unique(image, axis=0, return_index=True, return_inverse=True)
    if len(first) < len(image):
        row = int(np.flatnonzero(first[inverse.reshape(-1)] != np.arange(len(image)))[0])
        raise DataError(
            f"Rows {int(first[inverse.reshape(-1)[row]])} and {row} of {path} are the same picture's ({len(first)} of "
            f"{len(image)} rows differ), and a gallery holds each once: leave out repetitions, and say with "
            "--image-index which picture each EEG row saw."
        )


def _entry(ranks: QueryRanks, scores: Any, name: str) -> dict[str, Any]:
    """One entry of metrics.json: the mean over queries, and its interval over pictures."""
    import torch

    from eegrecon.metrics.functional.identification import clopper_pearson
    from eegrecon.metrics.functional.intervals import crossed_bootstrap

    pictures, place, count = torch.unique(ranks.image_index, return_inverse=True, return_counts=True)
    means = torch.zeros(len(pictures), dtype=torch.float64).index_add_(0, place, scores.double()) / count
    value, n = float(means.mean()), len(pictures)
    if name.startswith("top"):  # exact in small numbers too, where resampling is not
        k, n_way = (int("".join(c for c in part if c.isdigit())) for part in name.split("_"))
        return {"value": value, "ci95": list(clopper_pearson(value * n, n)), "chance": min(1.0, k / n_way)}
    g = ranks.gallery
    chance = float((1 / torch.arange(1, g + 1).double()).mean()) if name.startswith("mrr") else (g + 1) / 2
    bounds = (0.0, 1.0) if name.startswith("mrr") else (1.0, float(g))
    found = crossed_bootstrap(means[None], bounds=bounds) if n > 1 else None
    return {"value": value, "ci95": [found.low, found.high] if found else None, "chance": chance}


def _drawn(ranks: QueryRanks, task: str, options: argparse.Namespace) -> dict[str, Any]:
    from eegrecon.analysis.comparison import scores_of

    found = {}
    for name in scores_of(ranks.gallery):
        if name.startswith("top") and not name.endswith(f"_{ranks.gallery}way"):
            k, k_way = (int("".join(c for c in part if c.isdigit())) for part in name.split("_"))
            hits = ranks.kway_drawn(k_way, k, draws=options.draws, seed=options.seed)
            found[f"test/{task}_{name}_drawn"] = _entry(ranks, hits, name)
    return found


def _check_out(options: argparse.Namespace) -> None:
    out = Path(options.out) if options.out else None
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtifactError(f"--out {out} is not empty: name a new folder, or remove what is there.")


def _write(options: argparse.Namespace, ranks: dict[str, QueryRanks], metrics: dict[str, Any], gallery: str) -> None:
    from eegrecon.analysis.protocol import NOT_STATED, STAMP, Protocol
    from eegrecon.artifacts import new_manifest, sha256_file, write_json, write_manifest
    from eegrecon.stages.encoder_scores import write_ranks

    out = Path(options.out)
    stamp = Protocol(
        set=NOT_STATED,
        split="test",
        training=NOT_STATED,
        subjects=(options.subject,),
        gallery_kind=NOT_STATED,
        gallery_n=ranks[""].gallery,
        gallery_sha256=gallery,
        repetitions=0,
        channels=(),
        window=(0.0, 0.0),
        sfreq=0.0,
        selection=NOT_STATED,
        target=NOT_STATED,
    )
    given = {name: str(getattr(options, name)) for name in FILES if getattr(options, name) is not None}
    words = [word for name, file in given.items() for word in (f"--{name.replace('_', '-')}", file)]
    files = write_ranks(out, ranks)
    write_json(out / "metrics.json", {"schema": 1, "protocol": {STAMP: stamp.to_dict()}, "metrics": metrics})
    manifest = new_manifest(
        STAGE,
        command=shlex.join(["eegrecon", "evaluate", *words]),
        config_hash=hashlib.sha256(" ".join(words).encode()).hexdigest(),
        seed=options.seed,
        inputs={name: {"path": file, "sha256": sha256_file(Path(file))} for name, file in given.items()},
        outputs={name: {} for name in ["metrics.json", *files]},
        metrics={name: entry["value"] for name, entry in metrics.items()},
    )
    write_manifest(out, manifest)
    sys.stderr.write(f"eegrecon: evaluate: wrote {out}, which `eegrecon compare` reads\n")
