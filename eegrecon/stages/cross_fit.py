"""Cross-fitting: embeddings of the training rows by encoders that did not train on them.

An encoder has seen its training pictures, so what it says of them is better than what it will say of new ones, and a
prior that learns from it trusts its condition too much. Here K more encoders are trained with the same recipe, each
without one of K groups of training concepts (`data.splits.picture_folds`), and each embeds the rows of its group.

Each lives in `folds/<k>/` of the encoder's directory while it trains; a finished one leaves its embeddings there, so a
killed stage goes on with the fold it was at. All of it is removed once the stage's manifest is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from rich.console import Console

from eegrecon.artifacts import is_rank_zero, load_embeds, save_embeds, write_json
from eegrecon.config import config_hash
from eegrecon.data.splits import picture_folds
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.stages.encoder_build import build_data, build_network
from eegrecon.stages.encoder_training import build_trainer, fit_encoder
from eegrecon.stages.prior_checks import CROSS_FITTED

FOLDS, STARTED, RESULT, SELECTION = "folds", "started.json", "embeds.safetensors", "selection.json"
IDS = ("image_index", "subject", "repetition")
KEPT = ("epoch", "alpha", "monitor", "value")  # of a fold's selection, in the manifest


def claim_folds(cfg: Any, directory: Path, inputs: Mapping[str, Mapping[str, str]], overwrite: bool) -> None:
    """Keep what an interrupted attempt of the same config and inputs has left in `folds/`, remove all else.

    Call it once the stage's directory is claimed, before any training.
    """
    if not is_rank_zero():  # rank 0 has done it already, before it launched this process
        return
    home = directory / FOLDS
    hashes = {name: record["manifest_sha256"] for name, record in inputs.items()}
    claim = {"config_hash": config_hash(cfg), "inputs": hashes}
    if overwrite or _read(home / STARTED) != claim:
        remove_folds(directory)
    if cfg.cross_fit:
        write_json(home / STARTED, claim)


def remove_folds(directory: Path) -> None:
    """Remove `folds/`, whatever is in it."""
    if is_rank_zero():
        shutil.rmtree(directory / FOLDS, ignore_errors=True)


def check_folds(cfg: Any, data: ThingsDataModule) -> None:
    """Refuse more folds than concepts, and folds that leave too few rows for one batch.

    Raises:
        ConfigError: Says which.
    """
    sizes = np.bincount(_fold_of_rows(cfg, data), minlength=cfg.cross_fit)
    left = int(sizes.sum() - sizes.max())
    if cfg.encoder.name != "ridge" and left < cfg.loader.batch_size:
        raise ConfigError(
            f"cross_fit is {cfg.cross_fit}, which leaves {left} training rows to the encoder without the largest fold, "
            f"fewer than loader.batch_size {cfg.loader.batch_size}: choose more folds or a smaller batch."
        )


def cross_fit(cfg: Any, data: ThingsDataModule, directory: Path) -> dict[str, Any]:
    """Train the encoders of all folds that are not finished, and write `embeds/train_cross_fitted.safetensors`.

    Args:
        cfg: `TrainEncoderConfig`.
        data: That of the encoder itself, whose training rows are embedded.
        directory: The run's `encoder/`.

    Returns:
        What the manifest's `selection` says of it.
    """
    fold = _fold_of_rows(cfg, data)
    homes = [directory / FOLDS / str(k) for k in range(cfg.cross_fit)]
    # Asked of all folds before the first is trained: processes of one run must agree, and rank 0 writes as it goes on.
    missing = [k for k, home in enumerate(homes) if not (home / RESULT).is_file()]
    for k in missing:
        _train_fold(cfg, data, homes[k], np.flatnonzero(fold == k), k)
    selections = [_read(home / SELECTION) or {} for home in homes]
    if is_rank_zero():
        _put_together(data, fold, homes, directory / CROSS_FITTED)
    return {
        "folds": cfg.cross_fit,
        "by": "concept",
        "split_seed": cfg.data.split.split_seed,
        "rows": np.bincount(fold).tolist(),
        "selected": [{name: one[name] for name in KEPT if name in one} for one in selections],
    }


def _fold_of_rows(cfg: Any, data: ThingsDataModule) -> np.ndarray:
    """The fold of every training row, (n,)."""
    pictures = data.split.train
    folds = picture_folds(data.images, pictures, cfg.cross_fit, cfg.data.split.split_seed)
    shown = data.dataset("train").columns["image_index"].numpy()
    return folds[np.searchsorted(pictures, shown)]


def _train_fold(cfg: Any, data: ThingsDataModule, home: Path, rows: np.ndarray, k: int) -> None:
    """Train the encoder without fold k and embed that fold's rows of `data`."""
    if is_rank_zero():
        Console(stderr=True, highlight=False).print(f"Fold {k + 1} of {cfg.cross_fit}: an encoder without its concepts")
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    without = build_data(cfg, fold=(k, cfg.cross_fit))
    network = build_network(cfg, without)
    trainer = build_trainer(cfg, home)
    selection = fit_encoder(cfg, network, without, trainer, last=home / "checkpoints" / "last.ckpt")
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        embeds, ids = _embed(network.to(trainer.strategy.root_device).eval(), data, rows, cfg.loader.batch_size)
        write_json(home / SELECTION, selection)
        save_embeds(home / RESULT, embeds, ids["image_index"], ids["subject"], ids["repetition"])
        shutil.rmtree(home / "checkpoints", ignore_errors=True)
    trainer.strategy.barrier()


@torch.inference_mode()
def _embed(
    network: AlignedEncoder, data: ThingsDataModule, rows: np.ndarray, batch_size: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    device = next(network.parameters()).device
    dataset, found = data.dataset("train"), []
    for some in torch.from_numpy(rows).split(batch_size):
        batch = dataset.__getitems__(some)
        found.append(network(batch["eeg"].to(device), batch["subject"].to(device)).float().cpu())
    ids = {name: dataset.columns[name][rows].numpy() for name in IDS}
    return torch.cat(found).numpy(), ids


def _put_together(data: ThingsDataModule, fold: np.ndarray, homes: list[Path], path: Path) -> None:
    """One file of all folds, in the order of `embeds/train.safetensors`."""
    columns = {name: data.dataset("train").columns[name].numpy() for name in IDS}
    result: np.ndarray | None = None
    for k, home in enumerate(homes):
        rows, arrays = np.flatnonzero(fold == k), load_embeds(home / RESULT)
        if any(not np.array_equal(arrays[name], columns[name][rows]) for name in IDS):
            raise ArtifactError(f"{home / RESULT} does not hold the rows of fold {k}: train again with --overwrite.")
        if result is None:
            result = np.empty((len(fold), arrays["eeg_embeds"].shape[1]), dtype=np.float32)
        result[rows] = arrays["eeg_embeds"]
    assert result is not None
    save_embeds(path, result, columns["image_index"], columns["subject"], columns["repetition"])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
