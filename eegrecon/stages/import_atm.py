"""`import-atm`: an official ATM checkpoint (encoder or prior) becomes a finished `encoder/` or `prior/` directory.

A tool, not a stage of its own: what it writes are directories of `train-encoder` and `train-prior`. With an experiment
the encoder's embeddings of the training trials are made as well, which `train-prior` reads, and the manifest says on
which data and target it stands, which `evaluate` checks; without one the network can be loaded and used, no more.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import (
    MANIFEST,
    Manifest,
    atomic_write,
    input_record,
    new_manifest,
    open_stage,
    read_manifest,
    save_embeds,
    sha256_file,
    write_manifest,
)
from eegrecon.config import config_hash, load, to_yaml
from eegrecon.config_choice import Choice
from eegrecon.config_objective import LossConfig, TargetConfig
from eegrecon.config_prior import DiffusionConfig
from eegrecon.config_schema import DataConfig, SplitConfig, TrainEncoderConfig, TrainPriorConfig
from eegrecon.config_training import InitConfig, LoaderConfig, SelectConfig
from eegrecon.errors import ArtifactError, ConfigError, DataError
from eegrecon.stages.prior_checks import SAW_VALIDATION

if TYPE_CHECKING:
    from eegrecon.datamodule import ThingsDataModule
    from eegrecon.models.official_keys import Renamed

MODEL, REST = "model.safetensors", "official_rest.safetensors"
POSITIONS, SLICES = ("sinusoidal", "none"), ("official", "all")  # defaults first
# Its authors looked at test accuracy in every epoch (facts/atm.md 2.6).
RULE = "imported checkpoint: how its epoch was chosen is not known here"
# It has no validation split: every training concept was trained on.
SAW = {SAW_VALIDATION: True}
# Both spaces are unscaled: the buffers in the weights hold 0 and 1. The official sampler clamps (facts/atm.md 4).
CLIP = "diffusion.clip_sample"
OFFICIAL_DIFFUSION = DiffusionConfig(target_scale="none", cond_scale="std", clip_sample=True)
# Of an experiment, what the checkpoint itself decides.
DECIDED = {
    "train-encoder": ("encoder", "image_projection", "init", "baseline_ridge", "loss.vae_latent", "loss.text"),
    "train-prior": ("prior", "diffusion"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("file", metavar="FILE", help="a .pth/.pt/.safetensors state dict of the official code")
    parser.add_argument("--out", metavar="DIR", required=True, help="the run directory: DIR/encoder or DIR/prior")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--exp", metavar="NAME", help="the experiment whose data and target it belongs to")
    source.add_argument("--config", metavar="FILE", help="or its encoder.yaml (prior.yaml)")
    parser.add_argument("--subject", metavar="N", type=int, help="the subject that is tested (or was trained on)")
    parser.add_argument(
        "--position",
        choices=POSITIONS,
        default=POSITIONS[0],
        help="none for encoders of main before 2025-12-24, whose code adds no positions; default sinusoidal",
    )
    parser.add_argument(
        "--token-slice",
        choices=SLICES,
        default=SLICES[0],
        help="all for encoders of the develop branch, which keeps the last channel; default official",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another result")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a value of the experiment")


def run(options: argparse.Namespace) -> int:
    """Read `options.file`, say what it is and write its stage directory.

    Returns:
        0.

    Raises:
        ArtifactError: The directory holds another result, or a store is unfinished.
        ConfigError: Options or the experiment make no sense.
        DataError: The file holds no such network, or the experiment's data do not fit it.
    """
    started = time.monotonic()
    path, out = Path(options.file), Path(options.out)
    if options.overrides and not (options.exp or options.config):
        raise ConfigError(f"{' '.join(options.overrides)} changes an experiment, but none is named: add --exp NAME.")
    state = read_checkpoint(path)
    from eegrecon.models.official_keys import kind_of

    kind = kind_of(state, str(path))
    if kind == "encoder":
        from eegrecon.models.atm_keys import from_official_encoder

        found = from_official_encoder(state, str(path), options.position, options.token_slice)
        manifest = _import_encoder(options, path, out / "encoder", found, started)
    elif kind == "april":
        from eegrecon.models.april_keys import from_official_april

        _check_main_only(options, path, "the encoder of April 2024, which always adds positions over time")
        manifest = _import_encoder(options, path, out / "encoder", from_official_april(state, str(path)), started)
    else:
        from eegrecon.models.prior_keys import from_official_prior

        _check_main_only(options, path, "a prior")
        manifest = _import_prior(options, path, out / "prior", from_official_prior(state, str(path)), started)
    sys.stderr.write(f"eegrecon: import-atm: {manifest.stage}: {out}: {_facts(manifest)}\n")
    return 0


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A state dict (names to tensors) from a file of which nothing is executed.

    Raises:
        DataError: It is missing, unreadable, or holds anything else.
    """
    from eegrecon.data.feature_files import read_tensors
    from eegrecon.models.official_keys import unwrapped

    if not path.is_file():
        raise DataError(f"The checkpoint {path} does not exist: name a .pth, .pt or .safetensors file.")
    if path.suffix != ".safetensors":
        return unwrapped(read_tensors(path), str(path))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return unwrapped(load_file(path), str(path))
    except (OSError, SafetensorError) as error:
        raise DataError(f"The checkpoint {path} cannot be read ({error}): download it again.") from error


def _import_encoder(
    options: argparse.Namespace, path: Path, directory: Path, found: Renamed, started: float
) -> Manifest:
    encoder = Choice("atm_s", found.args)
    inputs = {"checkpoint": {"path": str(path), "manifest_sha256": sha256_file(path)}}
    data = None
    if options.exp or options.config:
        _check_overrides(options, "train-encoder", path)
        cfg = load("train-encoder", options.exp, _file(options), options.overrides, options.subject)
        # What an official checkpoint has none of, whatever the experiment trains.
        loss = replace(cfg.loss, vae_latent=0.0, text=0.0)
        cfg = replace(cfg, encoder=encoder, loss=loss, image_projection=Choice("none"), baseline_ridge=False)
        cfg = replace(cfg, standardise_eeg=False)
        cfg = replace(cfg, init=InitConfig())
        from eegrecon.stages.encoder_build import build_data
        from eegrecon.stages.train_encoder import input_records

        data = build_data(cfg)
        _check_data(data, found.facts, path)
        inputs |= input_records(cfg, data)
        describe, interface = data.describe(), data.targets["image"].interface()
    else:
        subjects = [] if options.subject is None else [options.subject]
        cfg = TrainEncoderConfig(
            data=_no_data(subjects),
            target=TargetConfig(name=""),
            encoder=encoder,
            loss=LossConfig(contrastive=0.0, mse=0.0),
            optim=Choice("adamw"),
            loader=LoaderConfig(batch_size=1),
            select=SelectConfig(monitor=""),
            baseline_ridge=False,
        )
        describe, interface = _described(found.facts, subjects), {"dim": found.facts["dim"]}
    claim = (directory, "train-encoder", config_hash(cfg), to_yaml(cfg), inputs)
    if open_stage(*claim, options.overwrite) == "up_to_date":
        return read_manifest(directory)
    manifest = _manifest("train-encoder", options, cfg, describe, interface, inputs)
    _save(found.state, directory / MODEL)
    _save(found.rest, directory / REST)
    files = [MODEL, REST]
    if data is not None:
        files += _embed(cfg, directory, data, found, manifest)
    manifest.outputs = {name: {} for name in files}
    manifest.wall_seconds = time.monotonic() - started
    return write_manifest(directory, manifest)


def _embed(cfg: Any, directory: Path, data: ThingsDataModule, found: Renamed, manifest: Manifest) -> list[str]:
    """What train-encoder writes beside the weights, as far as it is true: embeddings of training and validation trials.

    No score: the checkpoint was trained on the validation concepts as well.
    """
    import torch

    from eegrecon.config import ENCODERS
    from eegrecon.models.encoders.wrapper import AlignedEncoder
    from eegrecon.registry import resolve
    from eegrecon.stages.encoder_scores import embed_part

    n_chans = found.facts["n_chans"]
    network = AlignedEncoder(
        resolve(ENCODERS, cfg.encoder, **found.facts), None, torch.zeros(n_chans), torch.ones(n_chans)
    )
    network.load_state_dict(found.state, strict=True)
    network.eval()
    files = []
    for part in ("train", "val"):
        rows = embed_part(network, data, part)
        names = ("eeg_embeds", "image_index", "subject", "repetition")
        eeg_embeds, image_index, subject, repetition = (rows[name].numpy() for name in names)
        files.append(f"embeds/{part}.safetensors")
        save_embeds(directory / files[-1], eeg_embeds, image_index, subject, repetition)
    sys.stderr.write(
        "eegrecon: import-atm: no validation score: the authors trained on all concepts, those that are held out here "
        "too; a prior that is trained on this encoder is therefore chosen on pictures that the encoder has seen.\n"
    )
    return files


def _import_prior(options: argparse.Namespace, path: Path, directory: Path, found: Renamed, started: float) -> Manifest:
    dim = found.facts["dim"]
    if found.facts["cond_dim"] != dim:
        raise DataError(
            f"{path} is a prior from {found.facts['cond_dim']} to {dim} numbers, but EEG and image embeddings share "
            "one size here: it cannot be imported."
        )
    prior = Choice("unet", found.args)
    inputs = {"checkpoint": {"path": str(path), "manifest_sha256": sha256_file(path)}}
    describe: dict[str, Any] = {}
    interface: dict[str, Any] = {"dim": dim}
    home = directory.parent / "encoder"
    if (home / MANIFEST).is_file():
        encoder = read_manifest(home)
        if encoder.interface.get("dim") != dim or "projection" in encoder.interface:
            raise ArtifactError(
                f"{path} is a prior of {dim}-dimensional embeddings, but {home} makes others "
                f"({encoder.interface}): import it into another run directory."
            )
        inputs["encoder"], describe, interface = input_record(home), encoder.data, encoder.interface
    if options.exp or options.config:
        _check_overrides(options, "train-prior", path)
        cfg = load("train-prior", options.exp, _file(options), options.overrides, options.subject)
        clamp = cfg.diffusion.clip_sample if any(w.startswith(f"{CLIP}=") for w in options.overrides) else True
        cfg = replace(cfg, prior=prior, diffusion=replace(OFFICIAL_DIFFUSION, clip_sample=clamp))
    else:
        cfg = TrainPriorConfig(
            data=_no_data([] if options.subject is None else [options.subject]),
            target=TargetConfig(name=""),
            prior=prior,
            diffusion=OFFICIAL_DIFFUSION,
            optim=Choice("adam"),
            loader=LoaderConfig(batch_size=1),
            select=SelectConfig(monitor=""),
        )
    claim = (directory, "train-prior", config_hash(cfg), to_yaml(cfg), inputs)
    if open_stage(*claim, options.overwrite) == "up_to_date":
        return read_manifest(directory)
    manifest = _manifest("train-prior", options, cfg, describe, interface, inputs)
    _save(found.state, directory / MODEL)
    manifest.outputs = {MODEL: {}}
    manifest.wall_seconds = time.monotonic() - started
    return write_manifest(directory, manifest)


def _manifest(stage: str, options: argparse.Namespace, cfg: Any, data: Any, interface: Any, inputs: Any) -> Manifest:
    return new_manifest(
        stage,
        command=f"eegrecon import-atm {options.file} --out {options.out}",
        config_hash=config_hash(cfg),
        seed=cfg.seed,
        data=dict(data),
        interface=dict(interface),
        inputs=inputs,
        selection={"rule": RULE, **SAW},
    )


def _check_main_only(options: argparse.Namespace, path: Path, what: str) -> None:
    """Refuse options that would be ignored."""
    if (options.position, options.token_slice) != (POSITIONS[0], SLICES[0]):
        raise ConfigError(f"{path} is {what}: leave out --position and --token-slice, which encoders of main have.")


def _check_overrides(options: argparse.Namespace, stage: str, path: Path) -> None:
    """Refuse overrides of what the checkpoint decides, which would be replaced."""
    keys = [word.partition("=")[0] for word in options.overrides]
    decided = [key for key in keys if key != CLIP and any(f"{key}.".startswith(f"{one}.") for one in DECIDED[stage])]
    if decided:
        raise ConfigError(f"{', '.join(decided)} cannot be chosen: the checkpoint {path} decides it; leave it out.")


def _check_data(data: ThingsDataModule, facts: dict[str, int], path: Path) -> None:
    target = data.targets["image"]
    here = {"n_chans": data.n_chans, "n_times": data.n_times, "dim": target.dim}
    names = {"n_chans": "channels", "n_times": "samples", "dim": f"numbers in the target {target.name}"}
    wrong = [f"{facts[key]} {names[key]} and not {here[key]}" for key in names if here[key] != facts[key]]
    if wrong:
        raise DataError(
            f"{path} was trained on other data than the experiment names: {'; '.join(wrong)}: choose data.window, "
            "data.channels and target.name as it was trained, or leave out --exp."
        )


def _no_data(subjects: list[int]) -> DataConfig:
    return DataConfig(set="", subjects=subjects, split=SplitConfig(val_concepts=0))


def _described(facts: dict[str, int], subjects: list[int]) -> dict[str, Any]:
    """What the shapes say of the data; 63 channels and 250 samples are THINGS-EEG2 as ATM prepared it."""
    from eegrecon.data.channels import THINGS_EEG2_CHANNELS

    things = (facts["n_chans"], facts["n_times"]) == (len(THINGS_EEG2_CHANNELS), 250)
    names = list(THINGS_EEG2_CHANNELS) if things else [f"channel {number + 1}" for number in range(facts["n_chans"])]
    known = {"sfreq": 250.0, "window": [0.0, 1.0]} if things else {}
    return {"subjects": subjects, "channels": names, "n_chans": facts["n_chans"], "n_times": facts["n_times"], **known}


def _save(state: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save

    with atomic_write(path) as file:
        file.write(save({name: value.contiguous() for name, value in state.items()}))


def _file(options: argparse.Namespace) -> Path | None:
    return None if options.config is None else Path(options.config)


def _facts(manifest: Manifest) -> str:
    shapes = manifest.outputs[MODEL]["shape"]
    count = 0
    for shape in shapes.values():
        size = 1
        for length in shape:
            size *= length
        count += size
    if manifest.stage == "train-prior":
        bound = "encoder" in manifest.inputs
        note = "" if bound else "; reconstruct needs its encoder beside it (import that first, then this again)"
        return f"{count:,} numbers, {manifest.interface['dim']}-dimensional{note}"
    data = manifest.data
    bound = "name" in manifest.interface
    note = "" if bound else "; load and embed can use it, evaluate and train-prior need --exp NAME"
    return f"{count:,} numbers, {len(data['channels'])} channels x {data['n_times']} samples{note}"
