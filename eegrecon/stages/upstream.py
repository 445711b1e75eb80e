"""What a stage demands of the finished stages it reads: the same target space, set, subjects, channels and split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eegrecon.artifacts import Manifest, input_record, read_manifest, require_interface, sha256_file
from eegrecon.errors import ArtifactError, ConfigError


def require_one_subject(cfg: Any, verb: str) -> int:
    """The one subject whose test trials this is about.

    Raises:
        ConfigError: The config names several, or none.
    """
    subject = cfg.data.tested_subject
    alone = cfg.data.protocol != "within_subject" or len(cfg.data.subjects) == 1
    if subject is None or not alone:
        does = "makes the pictures" if verb == "reconstruct" else "scores the test trials"
        raise ConfigError(
            f"{verb} {does} of one subject at a time, but data.subjects is {cfg.data.subjects} "
            f"and data.test_subject {cfg.data.test_subject} ({cfg.data.protocol}): name one with --subject N."
        )
    return subject


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


def check_same_data(manifest: Manifest, data: Mapping[str, Any], upstream: Path) -> None:
    """The encoder must have seen the channels, window, pictures and split that this config asks for.

    Raises:
        ArtifactError: Names what differs.
    """
    keys = ("channels", "window", "n_times", "sfreq", "unit", "images_sha256", "split")
    wrong = [key for key in keys if key in manifest.data and manifest.data[key] != data[key]]
    if wrong:
        raise ArtifactError(
            f"The encoder in {upstream} was trained with other data than this config and data.root give; they differ "
            f"in {', '.join(wrong)}: give both stages the same data block, or train again with --overwrite."
        )


def generator_input(generator: Any) -> dict[str, dict[str, str]]:
    """Lineage entry of a generator's weights: one hash over those of its files, so that other weights are other inputs.

    Args:
        generator: The config's choice.

    Raises:
        DataError: A file is missing, or cut short.
    """
    from eegrecon.models.generators.sdxl_files import weight_files

    named = {name: generator.args[name] for name in ("base", "ip_adapter", "variant") if name in generator.args}
    files = weight_files(**named)
    together = "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
    return {"generator": {"path": str(files[-1]), "manifest_sha256": hashlib.sha256(together.encode()).hexdigest()}}


def read_metrics(directory: Path) -> dict[str, Any]:
    """The `metrics.json` of a finished stage."""
    return json.loads((directory / "metrics.json").read_text(encoding="utf-8"))


def control_directory(cfg: Any) -> Path:
    """Where the permuted-label run (`permuted_run`) keeps the numbers that are reported beside these."""
    folder = "reconstruct" if getattr(cfg, "pictures", True) else "evaluate"
    return Path(cfg.permuted_run) / f"{folder}{cfg.data.tested_suffix}"


def permuted_input(cfg: Any) -> dict[str, dict[str, str]]:
    """Lineage entry of the permuted-label run, {} when none is asked for.

    Raises:
        ArtifactError: It was asked for and is not finished, or is no control for this config.
    """
    if not cfg.permuted_run:
        return {}
    source = control_directory(cfg)
    pictures = source.name.startswith("reconstruct")
    experiment = "reconstruct --upstream --exp pocket_permuted" if pictures else "evaluate pictures=false"
    read_manifest(source, fix=f"`eegrecon {experiment}`")
    protocol = read_metrics(source)["protocol"]
    wanted = {"permuted_labels": True, "set": cfg.data.set, "subjects": cfg.data.training_subjects}
    wanted |= {"test_subjects": [cfg.data.tested_subject]}
    if pictures:
        wanted["judge"] = cfg.judge
    protocol = {"test_subjects": protocol.get("subjects"), **protocol}
    wrong = [f"{k} is {protocol.get(k)!r} there and {v!r} here" for k, v in wanted.items() if protocol.get(k) != v]
    if wrong:
        raise ArtifactError(
            f"permuted_run {source} is no control for this run ({'; '.join(wrong)}); name the run directory of an "
            "encoder trained with permute_labels=true."
        )
    return {"permuted_run": input_record(source)}
