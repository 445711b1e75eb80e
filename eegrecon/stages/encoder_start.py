"""Where training starts from: the weights of a finished run (`init.run`), as for a calibration of a new subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eegrecon.artifacts import input_record, read_manifest
from eegrecon.config import PROTOCOLS
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ArtifactError
from eegrecon.loading import load_stage
from eegrecon.manifest import Manifest
from eegrecon.models.encoders.wrapper import AlignedEncoder

SAME_DATA = ("channels", "window", "n_times", "sfreq", "unit")


def initial_run(cfg: Any, data: ThingsDataModule, interface: dict[str, Any]) -> Manifest | None:
    """The manifest of the run that training starts from, None if it starts from nothing.

    Raises:
        ArtifactError: The run is unfinished, has other channels, samples or targets, or (with `data.keep_minutes`, a
            calibration) has met the subject before.
    """
    if not cfg.init.run:
        return None
    source = initial_directory(cfg)
    manifest = read_manifest(source, fix="`eegrecon train-encoder`")
    here, there = data.describe(), manifest.data
    wrong = [f"{key} {there.get(key)} there, {here[key]} here" for key in SAME_DATA if there.get(key) != here[key]]
    for key, value in interface.items():
        if (other := manifest.interface.get(key)) != value:
            wrong.append(f"{key} {other} there, {value} here")
    if wrong:
        raise ArtifactError(
            f"init.run {source} does not fit this config: {'; '.join(wrong)}; name another run or change the config."
        )
    met = sorted(set(manifest.data.get("subjects", [])) & set(data.subjects))
    if cfg.data.keep_minutes is not None and met:
        raise ArtifactError(
            f"init.run {source} was trained on subject {', '.join(map(str, met))}, whom data.keep_minutes would "
            "calibrate with a few minutes: start from a leave_one_subject_out run that leaves this subject out."
        )
    return manifest


def initial_directory(cfg: Any) -> Path:
    """The encoder's directory in the run that `init.run` names."""
    return Path(cfg.init.run) / "encoder"


def initial_input(cfg: Any) -> dict[str, dict[str, str]]:
    """Its lineage entry."""
    return {"init": input_record(initial_directory(cfg))} if cfg.init.run else {}


def start_from(network: AlignedEncoder, cfg: Any) -> AlignedEncoder:
    """Take over everything that the initial run has learnt, its channel moments and known subjects included.

    A subject it has not met stays unknown to the network: what is fine-tuned is what unknown subjects get.

    Raises:
        ArtifactError: The networks differ.
    """
    source = initial_directory(cfg)
    loaded = load_stage(source).network
    assert isinstance(loaded, AlignedEncoder)
    if loaded.known_subjects is not None:  # buffers of another length cannot be copied into
        network.register_buffer("known_subjects", loaded.known_subjects.clone())
    try:
        network.load_state_dict(loaded.state_dict(), strict=True)
    except RuntimeError as error:
        raise ArtifactError(
            f"init.run {source} holds another network than this config's encoder {cfg.encoder.name!r} "
            f"({' '.join(str(error).split())[:300]}): give both the same encoder and heads."
        ) from error
    return network


def training_text(cfg: Any, initial: Manifest | None) -> str:
    """What the protocol stamp says of whom was trained on."""
    if cfg.data.keep_minutes is None:
        return str(cfg.data.protocol)
    minutes = f"{cfg.data.keep_minutes:g} min"
    if initial is None:
        return f"{cfg.data.protocol}, {minutes}"
    several = initial.data.get("split", {}).get("protocol", PROTOCOLS[0])
    return f"{several} + calibration {minutes}"
