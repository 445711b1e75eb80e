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
from eegrecon.stages.prior_checks import SAW_VALIDATION

SAME_DATA = ("channels", "window", "n_times", "sfreq", "unit")
MET = "met_subjects"  # in a manifest's selection: whose trials its weights have learnt from


def initial_run(cfg: Any, data: ThingsDataModule, interface: dict[str, Any]) -> Manifest | None:
    """The manifest of the run that training starts from, None if it starts from nothing.

    Raises:
        ArtifactError: The run is unfinished, has other channels, samples or targets, or has learnt from what this run
            holds out: the subject that is left out or calibrated, or concepts that choose the epoch.
    """
    if not cfg.init.run:
        return None
    source = initial_directory(cfg)
    manifest = read_manifest(source, fix="`eegrecon train-encoder`")
    here, there = data.describe(), manifest.data
    wrong = [f"{key} {there.get(key)} there, {here[key]} here" for key in SAME_DATA if there.get(key) != here[key]]
    if bool(there.get("permute_labels")) != here["permute_labels"]:
        wrong.append(f"permute_labels {there.get('permute_labels')} there, {here['permute_labels']} here")
    for key, value in interface.items():
        if (other := manifest.interface.get(key)) != value:
            wrong.append(f"{key} {other} there, {value} here")
    if wrong:
        raise ArtifactError(
            f"init.run {source} does not fit this config: {'; '.join(wrong)}; name another run or change the config."
        )
    _check_validation(cfg, source, manifest, here)
    met = sorted(met_subjects(manifest) & set(data.test_subjects))
    if cfg.data.protocol == "leave_one_subject_out" and met:
        raise ArtifactError(
            f"init.run {source} was trained on subject {', '.join(map(str, met))}, whom this run leaves out: start "
            "from a run without this subject."
        )
    met = sorted(met_subjects(manifest) & set(data.subjects))
    if cfg.data.keep_minutes is not None and met:
        raise ArtifactError(
            f"init.run {source} was trained on subject {', '.join(map(str, met))}, whom data.keep_minutes would "
            "calibrate with a few minutes: start from a leave_one_subject_out run that leaves this subject out."
        )
    return manifest


def _check_validation(cfg: Any, source: Path, manifest: Manifest, here: dict[str, Any]) -> None:
    """Refuse a run that has learnt from the concepts which are to choose this run's epoch."""
    there = manifest.data
    if cfg.select.epoch == "last" or there.get("images_sha256") != here["images_sha256"]:
        return
    mine, its = here["split"], there["split"]
    nested = its["split_seed"] == mine["split_seed"] and its["val_concepts"] >= mine["val_concepts"]
    if manifest.selection.get(SAW_VALIDATION) or not nested:
        says = f"it held out {its['val_concepts']} with split_seed {its['split_seed']}"
        if manifest.selection.get(SAW_VALIDATION):
            says = "an imported checkpoint has seen all"
        raise ArtifactError(
            f"init.run {source} was trained on concepts that this run validates on ({says}; here "
            f"{mine['val_concepts']} with split_seed {mine['split_seed']}): give both the same data.split, or train a "
            "fixed number of epochs (select.epoch=last)."
        )


def met_subjects(manifest: Manifest) -> set[int]:
    """Whose trials an encoder has learnt from, in its own run or in the one that started it."""
    return set(manifest.selection.get(MET) or manifest.data.get("subjects", []))


def history(data: ThingsDataModule, initial: Manifest | None) -> dict[str, Any]:
    """What a manifest's `selection` says of the run that training started from."""
    if initial is None:
        return {}
    found: dict[str, Any] = {MET: sorted(met_subjects(initial) | set(data.subjects))}
    return found | ({SAW_VALIDATION: True} if initial.selection.get(SAW_VALIDATION) else {})


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
    # Buffers of another length cannot be copied into; an imported network has none.
    network.known_subjects = None if loaded.known_subjects is None else loaded.known_subjects.clone()
    try:
        network.load_state_dict(loaded.state_dict(), strict=True)
    except RuntimeError as error:
        raise ArtifactError(
            f"init.run {source} holds another network than this config's encoder {cfg.encoder.name!r} "
            f"({' '.join(str(error).split())[:300]}): give both the same encoder and heads."
        ) from error
    return network


def training_text(cfg: Any, initial: Manifest | None) -> str:
    """What the protocol stamp says of whom was trained on, first in the run that training started from."""
    protocol, minutes = str(cfg.data.protocol), cfg.data.keep_minutes
    if initial is None:
        return protocol if minutes is None else f"{protocol}, {minutes:g} min"
    first = initial.selection.get("training")
    if first is None:
        imported = initial.selection.get(SAW_VALIDATION)
        first = "an imported checkpoint" if imported else initial.data.get("split", {}).get("protocol", PROTOCOLS[0])
    return f"{protocol} from {first}" if minutes is None else f"{first} + calibration {minutes:g} min"
