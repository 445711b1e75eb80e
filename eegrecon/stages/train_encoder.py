"""`train-encoder`: stage 1, from training EEG to an encoder, its embeddings and a ridge baseline."""

import time
from pathlib import Path
from typing import Any

import lightning
from safetensors.torch import save
from torch import nn

from eegrecon.analysis.ranks import save_ranks
from eegrecon.artifacts import (
    MANIFEST,
    Manifest,
    atomic_write,
    input_record,
    is_rank_zero,
    open_stage,
    read_manifest,
    save_embeds,
    write_json,
    write_manifest,
)
from eegrecon.config import config_hash, to_yaml
from eegrecon.data.layout import target_dir
from eegrecon.datamodule import ThingsDataModule
from eegrecon.models.encoders.ridge import Ridge
from eegrecon.stages.cross_fit import check_folds, claim_folds, cross_fit, remove_folds
from eegrecon.stages.encoder_build import build_data, build_network, interface_of, target_names
from eegrecon.stages.encoder_checks import check_config, check_targets
from eegrecon.stages.encoder_scores import embed_part, print_val_scores, val_payload, val_ranks, val_retrieval
from eegrecon.stages.encoder_start import history, initial_input, initial_run, start_from, training_text
from eegrecon.stages.encoder_training import STAGE, build_trainer, fit_encoder
from eegrecon.stages.prior_checks import CROSS_FITTED
from eegrecon.stages.ridge_fit import fit_closed_form
from eegrecon.stages.ridge_memory import check_ridge
from eegrecon.stages.trainer import trained_manifest

MODEL, BASELINE, METRICS = "model.safetensors", "baseline_ridge.safetensors", "metrics.json"
RANKS = "ranks_val.safetensors"


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Train an encoder, or fit it in closed form if it is `ridge`; with `cross_fit`, then one for each fold.

    Writes `model.safetensors` (an `AlignedEncoder` at the selected epoch), `embeds/{train,val}.safetensors`,
    `ranks_val.safetensors`, `metrics.json`, `tensorboard/`, if wanted `baseline_ridge.safetensors` (a plain `Ridge` on
    EEG in the store's unit) and `embeds/train_cross_fitted.safetensors` and, last, the manifest. A killed run continues
    from `checkpoints/last.ckpt` and from the fold it was at, as if it had never stopped.

    Args:
        cfg: `TrainEncoderConfig`.
        directory: The run's `encoder/`.
        command: What was typed.
        overwrite: Replace a finished result.

    Returns:
        The manifest (on other ranks than 0 an unwritten one).

    Raises:
        ConfigError: The config contradicts itself or the data.
        DataError: Data are missing or broken.
        ArtifactError: The directory holds another result, or a store is unfinished.
    """
    started = time.monotonic()
    directory = Path(directory)
    check_config(cfg)
    data = build_data(cfg)
    check_targets(cfg, data)
    if is_rank_zero() and (overwrite or not (directory / MANIFEST).exists()):  # a finished run needs no memory
        check_ridge(cfg, data)
    inputs = input_records(cfg, data)
    if open_stage(directory, STAGE, config_hash(cfg), to_yaml(cfg), inputs, overwrite) == "up_to_date":
        remove_folds(directory)  # a kill after the manifest may have left them
        return read_manifest(directory)
    claim_folds(cfg, directory, inputs, overwrite)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    network = build_network(cfg, data)
    initial = initial_run(cfg, data, interface_of(cfg, data, network))
    if initial is not None:
        network = start_from(network, cfg)
    trainer = build_trainer(cfg, directory)
    if cfg.cross_fit:
        check_folds(cfg, data)
    selection = fit_encoder(cfg, network, data, trainer, last=directory / "checkpoints" / "last.ckpt")
    if cfg.cross_fit:
        selection["cross_fit"] = cross_fit(cfg, data, directory)
    selection["training"] = training_text(cfg, initial)
    selection |= history(data, initial)
    manifest = trained_manifest(
        STAGE,
        command,
        cfg,
        trainer,
        data=data.describe(),
        interface=interface_of(cfg, data, network),
        inputs=inputs,
        selection=selection,
    )
    trainer.strategy.barrier()
    if not trainer.is_global_zero:
        return manifest
    network = network.to(trainer.strategy.root_device).eval()
    files = [MODEL, METRICS, RANKS, *([CROSS_FITTED] if cfg.cross_fit else [])]
    _save(network, directory / MODEL)
    scores = {}
    for part in ("train", "val"):
        rows = embed_part(network, data, part)
        names = ("eeg_embeds", "image_index", "subject", "repetition")
        eeg_embeds, image_index, subject, repetition = (rows[name].numpy() for name in names)
        save_embeds(directory / "embeds" / f"{part}.safetensors", eeg_embeds, image_index, subject, repetition)
        files.append(f"embeds/{part}.safetensors")
    scores[""] = val_retrieval(rows["eeg_embeds"], rows)
    save_ranks(directory / RANKS, val_ranks(rows["eeg_embeds"], rows))
    if cfg.baseline_ridge:
        samples_per_bin = cfg.baseline_samples_per_bin
        baseline = Ridge(data.n_chans, data.n_times, data.targets["image"].dim, samples_per_bin=samples_per_bin)
        fitted = fit_closed_form(baseline, data, network, raw=True)
        _save(baseline, directory / BASELINE)
        files.append(BASELINE)
        rows = embed_part(baseline, data, "val")  # its images as they are: it knows no projection
        scores["_ridge"] = val_retrieval(rows["eeg_embeds"], rows)
        selection |= {"ridge_alpha": fitted["alpha"], "ridge_samples_per_bin": samples_per_bin}
    payload = val_payload(cfg, data, scores, selection)
    write_json(directory / METRICS, payload)
    manifest.metrics = {name: entry["value"] for name, entry in payload["metrics"].items()}
    manifest.metrics["n_parameters"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
    if (rate := selection.pop("trials_per_second", None)) is not None:
        manifest.metrics["train/trials_per_second"] = rate
    manifest.outputs = {name: {} for name in files}
    manifest.wall_seconds = time.monotonic() - started
    print_val_scores(payload)
    write_manifest(directory, manifest)
    remove_folds(directory)
    return manifest


def input_records(cfg: Any, data: ThingsDataModule) -> dict[str, dict[str, str]]:
    """The manifest's `inputs`: every trial and target store that is read."""
    set_root = data.images.set_root
    targets = [target_dir(set_root, name) for name in dict.fromkeys(target_names(cfg).values())]
    stores = [*(store.path for store in data.trials), *targets]
    return {f"{path.parent.name}/{path.name}": input_record(path) for path in stores} | initial_input(cfg)


def _save(network: nn.Module, path: Path) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_write(path) as file:
        file.write(save(state))
