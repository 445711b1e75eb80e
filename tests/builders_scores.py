"""Finished `evaluate/` folders with made-up ranks, so that comparisons can be tested without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from eegrecon.analysis.protocol import STAMP, Protocol, gallery_hash
from eegrecon.analysis.ranks import QueryRanks, query_ranks, save_ranks
from eegrecon.analysis.scoring import rank_metrics
from eegrecon.artifacts import new_manifest, write_json, write_manifest

N = 20
STAMPED = Protocol(
    set="pocket",
    split="test",
    training="within_subject",
    subjects=(1,),
    gallery_kind="exact picture",
    gallery_n=N,
    gallery_sha256=gallery_hash([f"test/{i}" for i in range(N)]),
    repetitions=12,
    channels=("O1", "Oz", "O2"),
    window=(0.0, 1.0),
    sfreq=250.0,
    selection="best val/retrieval_top1_60way",
    target="clip-pocket",
)


def made_ranks(strength: float, subject: int, seed: int, n: int = N) -> QueryRanks:
    """Ranks of n queries whose own picture is more similar by `strength` standard deviations on average."""
    generator = torch.Generator().manual_seed(1000 * subject + seed)
    similarity = torch.randn(n, n, generator=generator) + strength * torch.eye(n)
    return query_ranks(similarity, torch.arange(n), torch.arange(n) + 100, torch.full((n,), subject))


def build_scores(
    run: Path,
    *,
    subject: int = 1,
    seed: int = 0,
    strength: float = 1.0,
    folder: str = "evaluate",
    ranks: QueryRanks | None = None,
    extra: dict | None = None,
    **stamp: object,
) -> Path:
    """Write `<run>/<folder>`: ranks, metrics.json with a stamp (changed by `stamp`) and a manifest."""
    directory = run / folder
    directory.mkdir(parents=True)
    ranks = made_ranks(strength, subject, seed) if ranks is None else ranks
    save_ranks(directory / "ranks.safetensors", ranks)
    metrics = {**rank_metrics({"": ranks}), **(extra or {})}
    stamped = replace(STAMPED, subjects=(subject,), **stamp)
    write_json(directory / "metrics.json", {"schema": 1, "protocol": {STAMP: stamped.to_dict()}, "metrics": metrics})
    outputs = {"metrics.json": {}, "ranks.safetensors": {}}
    manifest = new_manifest("evaluate", command="tests", config_hash="0", seed=seed, outputs=outputs)
    write_manifest(directory, manifest)
    return directory
