"""`evaluate` with `pictures: false`: how well an encoder's embeddings of test trials find their pictures."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from eegrecon.analysis.scoring import rank_metrics, with_permuted_labels
from eegrecon.artifacts import (
    Manifest,
    input_record,
    new_manifest,
    open_stage,
    read_manifest,
    save_embeds,
    write_json,
    write_manifest,
)
from eegrecon.config import config_hash, parse_yaml, to_yaml
from eegrecon.data.layout import target_dir, trial_dir
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ConfigError
from eegrecon.loading import load
from eegrecon.stages.data_module import data_module
from eegrecon.stages.encoder_scores import (
    embed_part,
    load_ridge,
    open_text,
    print_table,
    protocol_block,
    ranks_of,
    score_table,
    text_input,
    write_ranks,
)
from eegrecon.stages.upstream import (
    check_data,
    check_same_data,
    check_target,
    control_directory,
    permuted_input,
    read_metrics,
    require_one_subject,
)

STAGE = "evaluate"
EMBEDS, METRICS = "embeds/test.safetensors", "metrics.json"
EMBED_COLUMNS = ("eeg_embeds", "image_index", "subject", "repetition")
INTERVALS = "proportions: Clopper-Pearson, one trial a picture; mean rank, MRR: Student's t; median: order statistics"


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Embed the test trials with the encoder beside this stage and score the embeddings.

    Writes `embeds/test.safetensors` (with `ridge_embeds`), `ranks.safetensors` (of the seen picture among the test
    pictures; `ranks_ridge` for the linear baseline, `ranks_text` and `ranks_text_ridge` for the concept among the
    names of all test concepts), `metrics.json` and, last, the manifest. With `averaging_curve`, metrics.json also says
    how retrieval grows with the number of averaged trials.

    Args:
        cfg: `EvaluateConfig` with `pictures: false`.
        directory: The run's `evaluate/`; `encoder/` is its sibling.
        command: What was typed.
        overwrite: Replace a finished result.

    Raises:
        ArtifactError: The encoder is missing, changed, of another target space or of other data.
        ConfigError: The text target does not fit, or several subjects are to be tested at once.
        DataError: The test data are missing or broken.
    """
    started = time.monotonic()
    subject = require_one_subject(cfg, "evaluate")
    _check_curve(cfg)
    source = directory.parent / "encoder"
    encoder = read_manifest(source, fix="`eegrecon train-encoder`")
    data = _test_data(cfg.data, cfg)
    targets = data.targets["image"]
    if cfg.text_target.name and encoder.interface.get("projection"):
        raise ConfigError(
            f"text_target.name is {cfg.text_target.name!r}, but the embeddings of {source} lie in a learned projection "
            "of the image target (image_projection), where names have no place: leave text_target out."
        )
    text = open_text(cfg, data.images, targets.dim)
    check_target(encoder, targets.interface(), source, targets.path, "`eegrecon train-encoder` with this target")
    check_data(encoder, cfg.data, source)
    check_same_data(encoder, data.describe(), source)
    trials = trial_dir(Path(cfg.data.root) / cfg.data.set, subject)
    inputs = {"encoder": input_record(source), "targets": input_record(targets.path), "trials": input_record(trials)}
    inputs |= text_input(cfg) | permuted_input(cfg)
    for target in cfg.fusion_targets:
        inputs[f"fusion/{target.name}"] = input_record(target_dir(data.images.set_root, target.name))
    state = open_stage(directory, STAGE, config_hash(cfg), to_yaml(cfg), inputs, overwrite)
    if state == "up_to_date":
        return read_manifest(directory)
    network, ridge = load(source), load_ridge(source, data)
    rows = _embeds(network, ridge, data)
    ranks = ranks_of(rows, rows["image_embeds"], text, data.images)
    permuted = bool(parse_yaml((source / "config.yaml").read_text(encoding="utf-8")).get("permute_labels", False))
    protocol = protocol_block(cfg, data, encoder, permuted_labels=permuted, n_pictures=ranks[""].gallery)
    metrics = rank_metrics(ranks)
    if cfg.permuted_run:
        metrics = with_permuted_labels(metrics, read_metrics(control_directory(cfg))["metrics"])
    payload: dict[str, Any] = {"schema": 1, "protocol": {**protocol, "ci95": INTERVALS}, "metrics": metrics}
    if cfg.averaging_curve:
        payload["averaging_curve"] = [_averaged_over(k, cfg, network, ridge) for k in cfg.averaging_curve]
    eeg_embeds, image_index, tested, repetition = (rows[name].numpy() for name in EMBED_COLUMNS)
    extra = {name: rows[name].numpy() for name in ("ridge_embeds",) if name in rows}
    save_embeds(directory / EMBEDS, eeg_embeds, image_index, tested, repetition, extra)
    files = [METRICS, EMBEDS, *write_ranks(directory, ranks)]
    write_json(directory / METRICS, payload)
    counts = protocol["repetitions"].removeprefix("test: ")
    title = f"{cfg.data.set} subject {subject}: {len(tested)} test pictures, each the {counts} trials"
    print_table(score_table(metrics, title=title, empty_columns=False))
    manifest = new_manifest(
        STAGE,
        command=command,
        config_hash=config_hash(cfg),
        seed=cfg.seed,
        data=data.describe(),
        interface=encoder.interface,
        inputs=inputs,
        outputs={name: {} for name in files},
        metrics={name: entry["value"] for name, entry in metrics.items()},
        selection=encoder.selection,
        wall_seconds=time.monotonic() - started,
    )
    return write_manifest(directory, manifest)


def _check_curve(cfg: Any) -> None:
    curve, keep = cfg.averaging_curve, cfg.data.keep_repetitions
    if curve and (min(curve) < 1 or len(set(curve)) != len(curve)):
        raise ConfigError(f"averaging_curve is {curve}, expected different numbers of trials from 1.")
    if curve and keep != "all":
        raise ConfigError(
            f"averaging_curve chooses the first k repetitions itself, but data.keep_repetitions is {keep!r}: leave one "
            "of them out."
        )


def _test_data(block: Any, cfg: Any) -> ThingsDataModule:
    return data_module("evaluate", block, {"image": cfg.target}, seed=cfg.seed, fusion=cfg.fusion_targets)


def _embeds(network: nn.Module, ridge: nn.Module | None, data: ThingsDataModule) -> dict[str, Tensor]:
    rows = embed_part(network, data, "test")
    if ridge is not None:
        baseline = embed_part(ridge, data, "test")
        rows |= {"ridge_embeds": baseline["eeg_embeds"], "ridge_image_embeds": baseline["image_embeds"]}
    return rows


def _averaged_over(count: int, cfg: Any, network: nn.Module, ridge: nn.Module | None) -> dict[str, Any]:
    """Retrieval among all test pictures when only the first `count` trials of each are averaged."""
    data = _test_data(replace(cfg.data, keep_repetitions=count), cfg)
    rows = _embeds(network, ridge, data)
    ranks = ranks_of(rows, rows["image_embeds"], None, data.images)
    n = ranks[""].gallery
    wanted = [f"test/retrieval_top{k}_{n}way{suffix}" for k in (1, 5) for suffix in ("", "_ridge")]
    found = rank_metrics(ranks)
    return {"repetitions": count, "metrics": {name: found[name] for name in wanted if name in found}}
