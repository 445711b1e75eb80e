"""`train-encoder`: stage 1, from training EEG to an encoder, its embeddings and a ridge baseline."""

import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
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
from eegrecon.callbacks.average import MovingAverage
from eegrecon.callbacks.monitoring import TrainingMonitor
from eegrecon.callbacks.resume import EpochSeed
from eegrecon.callbacks.retrieval import RetrievalCallback
from eegrecon.config import config_hash, to_yaml
from eegrecon.data.layout import target_dir
from eegrecon.datamodule import ThingsDataModule
from eegrecon.models.encoders.ridge import Ridge
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.stages.encoder_build import (
    build_data,
    build_module,
    build_network,
    build_objective,
    interface_of,
    target_names,
)
from eegrecon.stages.encoder_checks import check_config, check_targets
from eegrecon.stages.encoder_scores import embed_part, print_val_scores, val_payload, val_ranks, val_retrieval
from eegrecon.stages.encoder_start import initial_input, initial_run, start_from, training_text
from eegrecon.stages.ridge_fit import fit_closed_form
from eegrecon.stages.ridge_memory import check_ridge
from eegrecon.stages.trainer import build_trainer as stage_trainer
from eegrecon.stages.trainer import checkpoints, trained_manifest

STAGE = "train-encoder"
MODEL, BASELINE, METRICS = "model.safetensors", "baseline_ridge.safetensors", "metrics.json"
RANKS = "ranks_val.safetensors"


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Train an encoder, or fit it in closed form if it is `ridge`.

    Writes `model.safetensors` (an `AlignedEncoder` at the selected epoch), `embeds/{train,val}.safetensors`,
    `ranks_val.safetensors`, `metrics.json`, `tensorboard/`,
    `baseline_ridge.safetensors` (a plain `Ridge` on EEG in the store's unit) if wanted
    and, last, the manifest. A killed run continues from `checkpoints/last.ckpt`, as if it had never stopped.

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
    state = open_stage(directory, STAGE, config_hash(cfg), to_yaml(cfg), inputs, overwrite)
    if state == "up_to_date":
        return read_manifest(directory)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    network = build_network(cfg, data)
    initial = initial_run(cfg, data, interface_of(cfg, data, network))
    if initial is not None:
        network = start_from(network, cfg)
    trainer = build_trainer(cfg, directory)
    if isinstance(network.encoder, Ridge):
        selection = fit_closed_form(network.encoder, data, network)
    else:
        selection = _train(cfg, network, data, trainer, last=directory / "checkpoints" / "last.ckpt", state=state)
    selection["training"] = training_text(cfg, initial)
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
    files = [MODEL, METRICS, RANKS]
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
    return write_manifest(directory, manifest)


def input_records(cfg: Any, data: ThingsDataModule) -> dict[str, dict[str, str]]:
    """The manifest's `inputs`: every trial and target store that is read."""
    set_root = data.images.set_root
    targets = [target_dir(set_root, name) for name in dict.fromkeys(target_names(cfg).values())]
    stores = [*(store.path for store in data.trials), *targets]
    return {f"{path.parent.name}/{path.name}": input_record(path) for path in stores} | initial_input(cfg)


def build_trainer(cfg: Any, directory: Path) -> lightning.Trainer:
    """The trainer of the config's `trainer` block with this stage's callbacks."""
    select = cfg.select
    saves = checkpoints(directory, select.monitor, select.mode)
    callbacks = [EpochSeed(cfg.seed), TrainingMonitor(), RetrievalCallback(build_objective(cfg))]
    callbacks += [MovingAverage(cfg.ema_decay)] if cfg.ema_decay else []
    callbacks += [EarlyStopping(select.monitor, mode=select.mode, patience=select.patience)] if select.patience else []
    callbacks += saves
    # The data module shares rows out itself.
    return stage_trainer(STAGE, cfg.trainer, directory, callbacks, use_distributed_sampler=False)


def _train(
    cfg: Any, network: AlignedEncoder, data: ThingsDataModule, trainer: lightning.Trainer, *, last: Path, state: str
) -> dict[str, Any]:
    """Trains, puts the selected epoch's weights into the network and says which epoch that was."""
    module = build_module(cfg, network, data)
    if cfg.compile:
        network.compile()  # in place: the state dict keeps its names
    with warnings.catch_warnings():
        # It is our own unfinished run that is there.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        trainer.fit(module, datamodule=data, ckpt_path=last if state == "resume" else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.strategy.barrier()
    best, latest = (saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint))
    chosen = best if cfg.select.epoch == "best" else latest
    kept = torch.load(chosen.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(kept["state_dict"], strict=True)
    rule = f"best {cfg.select.monitor}" if chosen is best else "last epoch"
    score = best.best_model_score if chosen is best else trainer.callback_metrics.get(cfg.select.monitor)
    monitor = next(one for one in trainer.callbacks if isinstance(one, TrainingMonitor))  # type: ignore[attr-defined]
    return {
        "epoch": int(kept["epoch"]),
        "monitor": cfg.select.monitor,
        "value": None if score is None else float(score),
        "ema": cfg.ema_decay > 0,
        "rule": rule,
        "epochs": int(trainer.current_epoch),
        "trials_per_second": monitor.trials_per_second,
    }


def _save(network: nn.Module, path: Path) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_write(path) as file:
        file.write(save(state))
