"""`evaluate`: scores finished reconstructions, from the pictures and embeddings on disk alone."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console

from eegrecon.analysis.captions import caption_ranks
from eegrecon.analysis.ranks import QueryRanks
from eegrecon.analysis.scoring import (
    Scores,
    prior_scores,
    rank_metrics,
    score_pictures,
    with_permuted_labels,
)
from eegrecon.artifacts import (
    Manifest,
    atomic_write,
    input_record,
    load_embeds,
    new_manifest,
    open_stage,
    read_manifest,
    write_json,
    write_manifest,
)
from eegrecon.callbacks.reconstruction import picture_file
from eegrecon.config import config_hash, to_yaml
from eegrecon.data.images import ImageSet
from eegrecon.data.layout import target_dir
from eegrecon.data.picture_rows import PictureInputs
from eegrecon.data.targets import TargetStore
from eegrecon.errors import ConfigError
from eegrecon.metrics.functional.identification import derangement
from eegrecon.models.judges import load_judge, load_target_space
from eegrecon.stages import evaluate_encoder
from eegrecon.stages.best_draw import CHOSEN, CHOSEN_CEILING, open_picture
from eegrecon.stages.encoder_scores import open_text, print_table, ranks_of, score_table, text_input, write_ranks
from eegrecon.stages.upstream import check_data, check_target, control_directory, permuted_input, read_metrics

STAGE = "evaluate"
METRICS_SCHEMA = 1
Value = TypeVar("Value")
MAX_PIXEL_SIZE = 425  # facts/atm.md section 6; smaller pictures are compared as they are, never enlarged
PICTURES, CEILING = "pictures", "pictures_ceiling"
SCORES, CAPTIONS = "scores.csv", "captions.json"


@dataclass
class Scored:
    """`payload` is metrics.json; the pictures (first draw, or the chosen) are kept for grids, as `image_index` says."""

    payload: dict[str, Any]
    scores: Scores
    ranks: dict[str, QueryRanks]
    image_index: list[int]
    image_ids: list[str]
    seen: list[Any]
    decoded: list[Any]
    ceiling: list[Any]


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Score the reconstructions beside this stage again, into its own `metrics.json`.

    With `pictures: false` the encoder alone is scored (`evaluate_encoder`), and nothing after it is needed.

    Args:
        cfg: `EvaluateConfig`.
        directory: The run's `evaluate/`; `reconstruct/` (or `encoder/`) is its sibling.
        command: What was typed.
        overwrite: Replace a finished result.

    Raises:
        ArtifactError: The reconstructions are missing, changed, or of another target space.
        ConfigError: A choice means something without pictures alone.
    """
    if not cfg.pictures:
        return evaluate_encoder.run(cfg, directory=directory, command=command, overwrite=overwrite)
    if cfg.averaging_curve:
        raise ConfigError(
            f"averaging_curve is {cfg.averaging_curve}, but reconstructions are of all trials together: set "
            "pictures=false, or leave it empty."
        )
    started = time.monotonic()
    source = directory.parent / f"reconstruct{cfg.data.tested_suffix}"
    targets = target_dir(Path(cfg.data.root) / cfg.data.set, cfg.target.name)
    upstream = read_manifest(source, fix="`eegrecon reconstruct`")
    store = TargetStore(targets, l2_normalise=cfg.target.l2_normalise)
    check_target(upstream, store.interface(), source, targets, fix="`eegrecon reconstruct` with the same target")
    check_data(upstream, cfg.data, source)
    inputs = {"reconstruct": input_record(source), "targets": input_record(targets), **text_input(cfg)}
    inputs |= permuted_input(cfg)
    state = open_stage(directory, STAGE, config_hash(cfg), to_yaml(cfg), inputs, overwrite)
    if state == "up_to_date":
        return read_manifest(directory)
    scored = score_directory(source, cfg, store, read_metrics(source)["protocol"])
    write_json(directory / "metrics.json", scored.payload)
    files = ["metrics.json", SCORES, *write_ranks(directory, scored.ranks)]
    write_scores(directory, scored)
    print_summary(scored.payload)
    manifest = new_manifest(
        STAGE,
        command=command,
        config_hash=config_hash(cfg),
        seed=cfg.seed,
        data=upstream.data,
        interface=upstream.interface,
        inputs=inputs,
        outputs={name: {} for name in files},
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
    part = getattr(cfg, "part", "test")
    embeds = load_embeds(source / embeds_file(part))
    index = [int(i) for i in embeds["image_index"]]
    draws = embeds["pred_image_embeds"].shape[1]
    ids = images.ids(embeds["image_index"])
    decoded, ceiling = (
        [[open_picture(source / folder / picture_file(image_id, draw)) for image_id in ids] for draw in range(draws)]
        for folder in (PICTURES, CEILING)
    )
    if CHOSEN in embeds:  # keep: best
        decoded, ceiling = (
            [[drawn[int(draw)][row] for row, draw in enumerate(embeds[name])]]
            for drawn, name in ((decoded, CHOSEN), (ceiling, CHOSEN_CEILING))
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
    image_embeds = torch.from_numpy(store.rows(embeds["image_index"]))
    ranks = ranks_of(tensors, image_embeds, open_text(cfg, images, store.dim), images)
    ranks |= _caption_ranks(source, tensors, images, cfg.seed)
    metrics = scores.metrics | rank_metrics(ranks)
    prior = prior_scores(tensors["pred_image_embeds"], image_embeds, seed=cfg.seed)
    metrics |= prior.metrics
    scores.per_picture |= prior.per_picture
    metrics, scores.per_picture = _of_part(part, metrics), _of_part(part, scores.per_picture)
    protocol = {
        **protocol,
        "part": part,
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
        metrics = with_permuted_labels(metrics, read_metrics(control_directory(cfg))["metrics"])
    payload = {"schema": METRICS_SCHEMA, "protocol": protocol, "metrics": metrics}
    return Scored(payload, scores, ranks, index, list(ids), seen, decoded[0], ceiling[0])


def write_captions(directory: Path, images: ImageSet, image_index: Any, inputs: Sequence[PictureInputs]) -> None:
    """Write `captions.json`: of each test picture what was read from EEG, and from the picture itself, one a draw."""
    decoded, own = (one.captions for one in inputs)
    if decoded is None or own is None:
        (directory / CAPTIONS).unlink(missing_ok=True)
        return
    ids = images.ids(np.asarray(image_index))
    rows = zip(ids, decoded, own, strict=True)
    write_json(directory / CAPTIONS, {name: {"decoded": said, "ceiling": best} for name, said, best in rows})


def _caption_ranks(
    source: Path, tensors: Mapping[str, torch.Tensor], images: ImageSet, seed: int
) -> dict[str, QueryRanks]:
    """How well the first draw's caption names the seen concept, its ceiling, and another's; {} without captions."""
    path = source / CAPTIONS
    if not path.is_file():
        return {}
    said = json.loads(path.read_text(encoding="utf-8"))
    index, subject = tensors["image_index"], tensors["subject"]
    ids = images.ids(index.numpy())
    concepts = [images.concept_of(int(i)) for i in index]
    decoded, ceiling = ([said[name][kind][0] for name in ids] for kind in ("decoded", "ceiling"))
    shuffled = [decoded[at] for at in derangement(len(ids), seed).tolist()]
    return {
        key: caption_ranks(captions, concepts, image_index=index, subject=subject)
        for key, captions in (("_caption", decoded), ("_caption_ceiling", ceiling), ("_caption_shuffled", shuffled))
    }


def write_scores(directory: Path, scored: Scored) -> None:
    """Write `scores.csv`: a line a picture, `image_index`, its concept and every score of what was decoded from EEG."""
    names = list(scored.scores.per_picture)
    columns = [scored.scores.per_picture[name].tolist() for name in names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_index", "image_id", *(name.partition("/")[2] for name in names)])
    writer.writerows(zip(scored.image_index, scored.image_ids, *columns, strict=True))
    with atomic_write(directory / SCORES) as file:
        file.write(text.getvalue().encode())


def embeds_file(part: str) -> str:
    """Where the embeddings of a part lie in a `reconstruct` directory."""
    return f"embeds/{part}.safetensors"


def _of_part(part: str, named: Mapping[str, Value]) -> dict[str, Value]:
    """Scores by names that say of which part they are."""
    return {f"{part}/{name.removeprefix('test/')}": value for name, value in named.items()}


def headline(payload: Mapping[str, Any]) -> dict[str, float]:
    """The values of metrics.json without intervals, for the manifest."""
    return {name: entry["value"] for name, entry in payload["metrics"].items()}


def print_summary(payload: Mapping[str, Any]) -> None:
    """Print the table of scores: decoded beside chance, ceiling and nulls."""
    protocol = payload["protocol"]
    table = score_table(
        payload["metrics"],
        title=f"{protocol['n_pictures']} reconstructions, judged by {protocol['judge']}",
        caption=f"* in conditioning space: {protocol['target']['name']} is what the generator was given",
        starred=f"{protocol['part']}/{protocol['in_conditioning_space']}",
    )
    print_table(table)


def _resize(picture: Any, size: tuple[int, int]) -> Any:
    from PIL import Image

    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
