"""`evaluate`: scores finished reconstructions, from the pictures and embeddings on disk alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from eegrecon.analysis.scoring import (
    Scores,
    score_embeds,
    score_pictures,
    summary_rows,
    with_permuted_labels,
)
from eegrecon.artifacts import (
    Manifest,
    input_record,
    load_embeds,
    new_manifest,
    open_stage,
    read_manifest,
    require_interface,
    write_json,
    write_manifest,
)
from eegrecon.callbacks.reconstruction import picture_file
from eegrecon.config import config_hash, to_yaml
from eegrecon.data.images import ImageSet
from eegrecon.data.layout import target_dir
from eegrecon.data.targets import TargetStore
from eegrecon.errors import ArtifactError
from eegrecon.models.judges import load_judge, load_target_space

STAGE = "evaluate"
METRICS_SCHEMA = 1
MAX_PIXEL_SIZE = 425  # facts/atm.md section 6; smaller pictures are compared as they are, never enlarged
PICTURES, CEILING, EMBEDS = "pictures", "pictures_ceiling", "embeds/test.safetensors"


@dataclass
class Scored:
    """`payload` is metrics.json; the pictures (first draw) are kept for grids, in the order of `image_index`."""

    payload: dict[str, Any]
    scores: Scores
    image_index: list[int]
    seen: list[Any]
    decoded: list[Any]
    ceiling: list[Any]


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Score the reconstructions beside this stage again, into its own `metrics.json`.

    Args:
        cfg: `EvaluateConfig`.
        directory: The run's `evaluate/`; `reconstruct/` is its sibling.
        command: What was typed.
        overwrite: Replace a finished result.

    Raises:
        ArtifactError: The reconstructions are missing, changed, or of another target space.
    """
    started = time.monotonic()
    source = directory.parent / f"reconstruct{cfg.data.tested_suffix}"
    targets = target_dir(Path(cfg.data.root) / cfg.data.set, cfg.target.name)
    upstream = read_manifest(source, fix="`eegrecon reconstruct`")
    store = TargetStore(targets, l2_normalise=cfg.target.l2_normalise)
    check_target(upstream, store.interface(), source, targets, fix="`eegrecon reconstruct` with the same target")
    check_data(upstream, cfg.data, source)
    inputs = {"reconstruct": input_record(source), "targets": input_record(targets)}
    inputs |= permuted_input(cfg)
    state = open_stage(directory, STAGE, config_hash(cfg), to_yaml(cfg), inputs, overwrite)
    if state == "up_to_date":
        return read_manifest(directory)
    scored = score_directory(source, cfg, store, _read_metrics(source)["protocol"])
    write_json(directory / "metrics.json", scored.payload)
    print_summary(scored.payload)
    manifest = new_manifest(
        STAGE,
        command=command,
        config_hash=config_hash(cfg),
        seed=cfg.seed,
        data=upstream.data,
        interface=upstream.interface,
        inputs=inputs,
        outputs={"metrics.json": {}},
        metrics=headline(scored.payload),
        wall_seconds=time.monotonic() - started,
    )
    return write_manifest(directory, manifest)


def score_directory(source: Path, cfg: Any, store: TargetStore, protocol: Mapping[str, Any]) -> Scored:
    """Read pictures and embeddings of a `reconstruct` directory and compute every number about them.

    Args:
        source: The directory; needs `pictures/`, `pictures_ceiling/` and `embeds/test.safetensors`.
        cfg: `ReconstructConfig` or `EvaluateConfig` (data, target, judge, permuted_run and seed are read).
        store: The target store the pictures were decoded into.
        protocol: What to say about how the pictures were made.
    """
    console = Console(stderr=True)
    images = ImageSet.from_root(Path(cfg.data.root) / cfg.data.set)
    embeds = load_embeds(source / EMBEDS)
    index = [int(i) for i in embeds["image_index"]]
    draws = embeds["pred_image_embeds"].shape[1]
    ids = images.ids(embeds["image_index"])
    decoded, ceiling = (
        [[_open(source / folder / picture_file(image_id, draw)) for image_id in ids] for draw in range(draws)]
        for folder in (PICTURES, CEILING)
    )
    size = decoded[0][0].size
    seen = [images.load(i) for i in index]
    # Both sides at the generated size, so that a judge does not tell sharp from soft.
    at_size = [_resize(picture, size) for picture in seen]
    pixel_size = min(MAX_PIXEL_SIZE, size[0])
    space = "clip_pocket" if store.interface()["model"] == "pocket_clip" else cfg.target.name.replace("-", "_")
    networks = {cfg.judge: load_judge(cfg.judge), space: load_target_space(store.interface())}
    scores = score_pictures(
        decoded,
        at_size,
        ceiling,
        networks=networks,
        pixel_size=pixel_size,
        seed=cfg.seed,
        progress=lambda name: console.print(f"eegrecon: scoring {name} of {len(index)} pictures", highlight=False),
    )
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in embeds.items()}
    metrics = scores.metrics | score_embeds(
        tensors["eeg_embeds"],
        torch.from_numpy(np.array(store.rows(embeds["image_index"]), dtype=np.float32)),
        seed=cfg.seed,
        ridge_embeds=tensors.get("ridge_embeds"),
        pred_image_embeds=tensors["pred_image_embeds"],
    )
    protocol = {
        **protocol,
        "judge": cfg.judge,
        "in_conditioning_space": f"two_way_{space}",
        "two_way": "each reconstruction against all other seen pictures, Pearson, a tie counts one half",
        "n_pictures": len(index),
        "draws": draws,
        "picture_size": list(size),
        "pixel_size": pixel_size,
        "ci95": "proportions: Clopper-Pearson, one trial a picture; others: Student's t over pictures",
        "shuffled": f"reconstructions dealt to other pictures by a derangement (seed {cfg.seed})",
    }
    if cfg.permuted_run:
        control = Path(cfg.permuted_run) / f"reconstruct{cfg.data.tested_suffix}"
        metrics = with_permuted_labels(metrics, _read_metrics(control)["metrics"])
    payload = {"schema": METRICS_SCHEMA, "protocol": protocol, "metrics": metrics}
    return Scored(payload, scores, index, seen, decoded[0], ceiling[0])


def permuted_input(cfg: Any) -> dict[str, dict[str, str]]:
    """Lineage entry of the permuted-label run, {} when none is asked for.

    Raises:
        ArtifactError: It was asked for and is not finished, or is no control for this config.
    """
    if not cfg.permuted_run:
        return {}
    source = Path(cfg.permuted_run) / f"reconstruct{cfg.data.tested_suffix}"
    read_manifest(source, fix="`eegrecon reconstruct --upstream --exp pocket_permuted`")
    protocol = _read_metrics(source)["protocol"]
    wanted = {"permuted_labels": True, "judge": cfg.judge, "set": cfg.data.set}
    wanted |= {"subjects": cfg.data.training_subjects, "test_subjects": [cfg.data.tested_subject]}
    protocol = {"test_subjects": protocol.get("subjects"), **protocol}
    wrong = [f"{k} is {protocol.get(k)!r} there and {v!r} here" for k, v in wanted.items() if protocol.get(k) != v]
    if wrong:
        raise ArtifactError(
            f"permuted_run {source} is no control for this run ({'; '.join(wrong)}); name the run directory of an "
            "encoder trained with permute_labels=true."
        )
    return {"permuted_run": input_record(source)}


def check_target(manifest: Manifest, interface: Mapping[str, Any], upstream: Path, targets: Path, fix: str) -> None:
    """Refuse an upstream stage of another target space than the store the config names.

    Raises:
        ArtifactError: Names the fields that differ.
    """
    require_interface(manifest, interface, manifest_path=upstream, wanted_by=str(targets / "header.json"), fix=fix)


def check_data(manifest: Manifest, data: Any, upstream: Path) -> None:
    """Refuse an upstream stage that was trained on another set or subjects, or is not for the subject that is tested.

    Raises:
        ArtifactError: Names both.
    """
    tested = manifest.data.get("test_subjects", manifest.data.get("subjects", []))
    found = {name: manifest.data.get(name) for name in ("set", "subjects")}
    wanted = {"set": data.set, "subjects": data.training_subjects}
    if data.tested_subject not in tested:
        found["test_subject"], wanted["test_subject"] = tested, data.tested_subject
    for name, value in wanted.items():
        if found[name] != value:
            raise ArtifactError(
                f"{upstream} was made with data.{name} {found[name]!r}, but this config asks for {value!r}: change the "
                "config or name another run with RUN=… (--run …)."
            )


def headline(payload: Mapping[str, Any]) -> dict[str, float]:
    """The values of metrics.json without intervals, for the manifest."""
    return {name: entry["value"] for name, entry in payload["metrics"].items()}


def print_summary(payload: Mapping[str, Any]) -> None:
    """Print the table of scores: decoded beside chance, ceiling and nulls."""
    protocol = payload["protocol"]
    rows = summary_rows(payload["metrics"])
    conditioning = f"test/{protocol['in_conditioning_space']}"
    table = Table(
        title=f"{protocol['n_pictures']} reconstructions, judged by {protocol['judge']}",
        title_justify="left",
        caption=f"* in conditioning space: {protocol['target']['name']} is what the generator was given",
        caption_justify="left",
    )
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for row in rows:
        star = "*" if row["metric"] == conditioning else ""
        table.add_row(*{**row, "metric": row["metric"].removeprefix("test/") + star}.values())
    Console(width=max(110, Console().width)).print(table)


def _read_metrics(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "metrics.json").read_text(encoding="utf-8"))


def _open(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise ArtifactError(f"the picture {path} cannot be read; make it again with --overwrite ({error}).") from error


def _resize(picture: Any, size: tuple[int, int]) -> Any:
    from PIL import Image

    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
