"""`export-atm`: a finished ATM-S encoder or prior as a checkpoint that the official code loads.

A tool, not a stage: it writes one file of tensors. It refuses what the official modules cannot compute.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import MANIFEST, atomic_write
from eegrecon.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from eegrecon.loading import LoadedStage

REST = "official_rest.safetensors"  # of import-atm: what the official forward never reads
ENDINGS = (".pth", ".pt", ".safetensors")
# Which code computes what the encoder computed, by (position, token_slice); a learned position takes the table's place.
CODE = {
    ("sinusoidal", "official"): "main since 2025-12-24",
    ("learnable", "official"): "main since 2025-12-24",
    ("none", "official"): "main before 2025-12-24, which added no positions",
    ("none", "all"): "the develop branch, if it adds no positions",
    ("sinusoidal", "all"): "the develop branch, if it adds positions",
    ("learnable", "all"): "the develop branch, if it adds positions",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("directory", metavar="DIR", help="an encoder/ or prior/, or a run directory with one of them")
    parser.add_argument("--out", metavar="FILE", required=True, help="the .pth, .pt or .safetensors file to write")
    parser.add_argument(
        "--normalised-input",
        action="store_true",
        help="export an encoder that normalises its channels: the official module has no place for that, so its EEG "
        "has to be (eeg - mean) / std, with the numbers of FILE.channels.safetensors",
    )


def run(options: argparse.Namespace) -> int:
    """Write `options.out`, whole or not at all, and say what to know about it.

    Returns:
        0.

    Raises:
        ArtifactError: There is no such finished stage.
        ConfigError: The official module cannot compute what this network does; lists every reason.
    """
    out = Path(options.out)
    if out.suffix not in ENDINGS:
        raise ConfigError(f"--out is {out}, expected a name that ends in {', '.join(ENDINGS)}.")
    directory = stage_directory(Path(options.directory))
    from eegrecon.loading import load_stage

    stage = load_stage(directory)
    if stage.manifest.stage == "train-encoder":
        official, notes = _encoder(stage, directory, options.normalised_input, out)
    else:
        from eegrecon.models.prior_keys import to_official_prior

        _check_prior(stage, directory)
        official = to_official_prior(stage.network.state_dict())
        notes = ["the prior of main, whose sampler clamps (diffusion.clip_sample)"]
    _save(official, out)
    sys.stderr.write(f"eegrecon: export-atm: wrote {out}: {len(official)} tensors; {'; '.join(notes)}\n")
    return 0


def stage_directory(directory: Path) -> Path:
    """The directory itself if a stage has finished in it, else its only `encoder/` or `prior/`.

    Raises:
        ArtifactError: There is none, or both.
    """
    if (directory / MANIFEST).is_file():
        return directory
    found = [path for name in ("encoder", "prior") if ((path := directory / name) / MANIFEST).is_file()]
    if len(found) != 1:
        what = "a finished encoder/ and prior/" if found else "no finished encoder/ or prior/"
        raise ArtifactError(f"{directory} holds {what}: name the directory of one.")
    return found[0]


def _encoder(
    stage: LoadedStage, directory: Path, normalised_input: bool, out: Path
) -> tuple[dict[str, Tensor], list[str]]:
    import torch
    from safetensors.torch import load_file

    network: Any = stage.network
    _check_encoder(stage, directory)
    mean, std = network.channel_mean, network.channel_std
    plain = bool((mean == 0).all() and (std == 1).all())
    if not plain and not normalised_input:
        raise ConfigError(
            f"The encoder in {directory} normalises its channels, for which the official module has no place: add "
            "--normalised-input and give that module (eeg - mean) / std, with the numbers written beside the file."
        )
    rest = load_file(directory / REST) if REST in stage.manifest.outputs else {}
    official, notes = _renamed(network, rest)
    notes.append("what its forward never reads is as imported" if rest else "what its forward never reads is zero")
    left = [name for name in ("latent_head", "image_projection", "logit_bias") if getattr(network, name) is not None]
    if left:
        notes.append(f"left out: {', '.join(left)}")
    if not plain:
        beside = out.with_suffix(".channels.safetensors")
        _save({"channel_mean": mean.cpu(), "channel_std": torch.as_tensor(std).cpu()}, beside)
        notes.append(f"its EEG has to be (eeg - mean) / std: {beside}")
    return official, notes


def _renamed(network: Any, rest: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    from eegrecon.models.april_keys import to_official_april
    from eegrecon.models.atm_keys import to_official_encoder

    where, state = network.encoder, network.state_dict()
    if where.attention_axis == "time":
        return to_official_april(state, rest, where.n_times), ["for the code of April 2024"]
    official, notes = to_official_encoder(state, rest)
    position = "none" if where.tokens.position is None else "sinusoidal"
    token_slice = "official" if where.kept == slice(0, where.n_chans) else "all"
    return official, [f"for {CODE[position, token_slice]}", *notes]


def _check_encoder(stage: LoadedStage, directory: Path) -> None:
    """Refuse what the official modules, that of main and that of April 2024, do not have."""
    choice, network = stage.config["encoder"], stage.network
    encoder: Any = network.encoder
    if choice["name"] != "atm_s":
        raise ConfigError(f"{directory} holds the encoder {choice['name']}, but only atm_s can be exported.")
    problems = []
    if encoder.attention_axis == "time":
        if (count := len(encoder.time.layers)) != 1:
            problems.append(f"it has {count} layers, not 1")
    else:
        if encoder.tokens.subject is None:
            problems.append("subject_token is none, where it always has one")
        if encoder.subject_linear is not None:
            problems.append("subject_linear is true, which it never calls")
        heads = {layer.heads for layer in encoder.layers}
        if len(encoder.layers) != 1 or heads != {4}:
            problems.append(f"it has {len(encoder.layers)} layer(s) of {max(heads, default=0)} heads, not 1 of 4")
    if problems:
        raise ConfigError(
            f"The official encoder cannot compute what the one in {directory} does (encoder.args): "
            f"{'; '.join(problems)}; train with args that it has (experiments things_eeg2/atm_s_main, atm_s_apr24)."
        )


def _check_prior(stage: LoadedStage, directory: Path) -> None:
    """Refuse what the official prior and its scheduler (ε-prediction, linear, 1000 steps) cannot compute."""
    network: Any = stage.network
    if (name := stage.config["prior"]["name"]) != "unet":
        raise ConfigError(f"{directory} holds the prior {name}, but only unet can be exported.")
    problems = []
    if not bool((network.target_mean == 0).all() and (network.target_scale == 1).all()):
        problems.append("its targets are scaled (diffusion.target_scale, to be none)")
    if bool(network.cond_unit):
        problems.append("its conditions are divided by their length (diffusion.cond_scale, to be std)")
    wanted = {"prediction_type": "epsilon", "num_train_timesteps": 1000, "beta_schedule": "linear"}
    diffusion = stage.config["diffusion"]
    problems += [f"{key} is {diffusion[key]}, not {value}" for key, value in wanted.items() if diffusion[key] != value]
    if problems:
        raise ConfigError(
            f"The official prior cannot compute what the one in {directory} does: {'; '.join(problems)}; train a prior "
            "with these settings."
        )


def _save(state: dict[str, Tensor], path: Path) -> None:
    import torch
    from safetensors.torch import save

    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            file.write(save(state))
        else:
            torch.save(state, file)
