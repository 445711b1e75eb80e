"""Finished runs as `compare` sees them: their ranks, their numbers, their stamp, and which belong together."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eegrecon.analysis.protocol import Protocol, unlike
from eegrecon.analysis.ranks import QueryRanks, load_ranks
from eegrecon.analysis.scoring import TASKS
from eegrecon.artifacts import MANIFEST, read_manifest
from eegrecon.errors import ArtifactError

METRICS = "metrics.json"
FOLDERS = ("evaluate", "reconstruct")  # stage folders that hold test numbers, the preferred one first
WHO, SEED = re.compile(r"sub-\d+(-\d+)*|all-but-\d+"), re.compile(r"seed-\d+")


@dataclass(frozen=True, eq=False)
class RunScores:
    """The scores of one stage directory.

    Attributes:
        path: The stage directory.
        experiment: What subjects and seeds of one method share: the path above `sub-08/seed-0`, else the run's own.
        seed: Of the run.
        protocol: The stamp.
        ranks: Key of `analysis.scoring.TASKS` to ranks.
        metrics: The `metrics` of metrics.json.
    """

    path: Path
    experiment: str
    seed: int
    protocol: Protocol
    ranks: Mapping[str, QueryRanks]
    metrics: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one method under one protocol: several subjects, several seeds.

    Attributes:
        name: What tables call it.
        protocol: The runs' common stamp, with the subjects of all.
        runs: At least one.
    """

    name: str
    protocol: Protocol
    runs: Sequence[RunScores]


def read_scores(directory: Path) -> RunScores:
    """Read one finished stage directory.

    Args:
        directory: An `evaluate` or `reconstruct` folder, or what `evaluate --eeg-embeds … --out` wrote.

    Raises:
        ArtifactError: It is unfinished, was changed, or has no numbers with a stamp of this version.
    """
    manifest = read_manifest(directory, fix="`eegrecon evaluate`")
    path = directory / METRICS
    if METRICS not in manifest.outputs:
        raise ArtifactError(f"{directory} ({manifest.stage}) holds no {METRICS}: name a run that has been evaluated.")
    payload = json.loads(path.read_text(encoding="utf-8"))
    protocol = Protocol.from_metrics(payload.get("protocol", {}), where=str(path))
    files = {key: directory / f"ranks{key}.safetensors" for key in TASKS}
    ranks = {key: load_ranks(file) for key, file in files.items() if file.is_file()}
    return RunScores(directory, _experiment(directory), manifest.seed, protocol, ranks, payload["metrics"])


def find_stages(path: Path) -> list[Path]:
    """Finished stage directories with test numbers at or below `path`; one a run and tested subject.

    Where a run has both, `evaluate` is preferred to `reconstruct`. Unfinished ones are passed over.

    Raises:
        ArtifactError: There is none.
    """
    if (path / MANIFEST).is_file():
        return [path]
    found: dict[tuple[Path, str], Path] = {}
    for folder in reversed(FOLDERS):
        for manifest in sorted(path.rglob(f"{folder}*/{MANIFEST}")):
            suffix = manifest.parent.name.removeprefix(folder)
            if suffix == "" or WHO.fullmatch(suffix.removeprefix("-")):
                found[manifest.parent.parent, suffix] = manifest.parent
    if not found:
        state = "does not exist" if not path.exists() else f"holds no finished {' or '.join(FOLDERS)}"
        raise ArtifactError(f"{path} {state}: name a run (runs/EXP/sub-08/seed-0), or first run `eegrecon evaluate`.")
    return [found[key] for key in sorted(found, key=lambda key: (str(key[0]), key[1]))]


def group_runs(runs: Sequence[RunScores]) -> list[Group]:
    """Put the runs of one experiment and training protocol together, in the order of their first runs.

    Raises:
        ArtifactError: Runs of one experiment were scored under unlike protocols, or two have one subject and seed.
    """
    parts: dict[tuple[str, str], list[RunScores]] = {}
    for run in {run.path.resolve(): run for run in runs}.values():
        parts.setdefault((run.experiment, run.protocol.training), []).append(run)
    experiments = [experiment for experiment, _ in parts]
    groups = []
    for (experiment, training), mine in parts.items():
        name = experiment if experiments.count(experiment) == 1 else f"{experiment} ({training})"
        groups.append(make_group(name, mine))
    return groups


def make_group(name: str, runs: Sequence[RunScores]) -> Group:
    """A group of these runs.

    Raises:
        ArtifactError: They were scored under unlike protocols, or two have one subject and seed.
    """
    first = runs[0]
    seen: dict[tuple[int, int], Path] = {}
    for run in runs:
        if found := unlike(first.protocol, run.protocol):
            raise ArtifactError(
                f"{first.path} and {run.path} belong to one experiment, but were scored under unlike protocols "
                f"({'; '.join(found)}): evaluate them alike, or name only some of them."
            )
        for subject in run.protocol.subjects:
            if (subject, run.seed) in seen:
                raise ArtifactError(
                    f"{seen[subject, run.seed]} and {run.path} are both subject {subject}, seed {run.seed} of {name}: "
                    "name one of them."
                )
            seen[subject, run.seed] = run.path
    subjects = tuple(sorted({subject for subject, _ in seen}))
    return Group(name, replace(first.protocol, subjects=subjects), list(runs))


def _experiment(directory: Path) -> str:
    run = directory.parent if directory.name.startswith(FOLDERS) else directory
    if SEED.fullmatch(run.name) and WHO.fullmatch(run.parent.name):
        run = run.parent.parent
    parts = run.parts
    return str(Path(*parts[1:])) if parts[0] == "runs" and len(parts) > 1 else str(run)
