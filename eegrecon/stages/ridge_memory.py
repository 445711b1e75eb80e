"""Whether ridge can be fitted here, found out before anything is read or trained."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from eegrecon.config import ENCODERS
from eegrecon.data.budget import trials_in
from eegrecon.data.memory import SHARE, free_bytes
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ConfigError
from eegrecon.models.encoders.ridge import count_bins, fit_bytes
from eegrecon.registry import resolve
from eegrecon.stages.ridge_fit import RIDGE_ROWS

REST = 100_000_000  # bytes of what is not counted one by one; with it the estimate is 1.0 to 1.4 of what was measured


class _Fit(NamedTuple):
    """A ridge that the config asks for: what it is, its key, its bins, and what to do instead."""

    name: str
    key: str
    bins: int
    instead: str


class _Rows(NamedTuple):
    """Averaged rows of training and of validation, and bytes that stay in memory after training a network."""

    train: int
    val: int
    kept: int


def check_ridge(cfg: Any, data: ThingsDataModule) -> None:
    """Refuse a ridge whose bins do not fit a trial, or that does not fit into memory.

    Args:
        cfg: `TrainEncoderConfig`.
        data: Its data; headers and which trials are used are read, EEG is not.

    Raises:
        ConfigError: A sentence for each such ridge.
    """
    fits = _asked(cfg, data)
    if not fits:
        return
    free, rows, problems = free_bytes(torch.device("cpu")), _rows(cfg, data), []
    for fit in fits:
        needed = _needed(data, rows, fit.bins, free)
        if needed <= free:
            continue
        sizes = [size for size in range(1, data.n_times + 1) if count_bins(data.n_times, size) < fit.bins]
        enough = next((k for k in sizes if _needed(data, rows, count_bins(data.n_times, k), free) <= free), None)
        advice = f"set {fit.key}={enough} or more, " if enough else ""
        problems.append(
            f"{fit.name} does not fit into memory: ridge on {rows.train:,} training rows x "
            f"{data.n_chans * fit.bins:,} features ({data.n_chans} channels x {fit.bins} values) takes about "
            f"{needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; {advice}choose fewer channels (data.channels) "
            f"or a shorter data.window, or {fit.instead}."
        )
    if problems:
        raise ConfigError(" ".join(problems))


def _asked(cfg: Any, data: ThingsDataModule) -> list[_Fit]:
    fits = []
    if cfg.encoder.name == "ridge":
        with torch.device("meta"):  # its arguments are checked, its weights take nothing
            facts = {"n_chans": data.n_chans, "n_times": data.n_times, "dim": data.targets["image"].dim}
            encoder = resolve(ENCODERS, cfg.encoder, **facts)
        bins = encoder.linear.in_features // data.n_chans
        fits.append(_Fit("The encoder ridge", "encoder.args.samples_per_bin", bins, "train another encoder"))
    if cfg.baseline_ridge:
        key = "baseline_samples_per_bin"
        try:
            bins = count_bins(data.n_times, cfg.baseline_samples_per_bin)
        except ValueError as error:
            raise ConfigError(f"The linear baseline cannot be fitted with this {key}: its {error}.") from error
        fits.append(_Fit("The linear baseline (baseline_ridge)", key, bins, "leave it out with baseline_ridge=false"))
    return fits


def _rows(cfg: Any, data: ThingsDataModule) -> _Rows:
    train = val = trial_bytes = 0
    for store in data.trials:
        part = store.open("train", sessions=cfg.data.sessions, repetitions=cfg.data.keep_repetitions)
        used = part.used.sum(1)
        chosen = used[np.isin(part.image_index, data.split.train)]
        pictures, trials = int(np.count_nonzero(chosen)), int(chosen.sum())
        if cfg.data.keep_minutes is not None:  # at most
            budget = trials_in(cfg.data.keep_minutes, cfg.data.seconds_per_trial)
            pictures, trials = min(pictures, budget), min(trials, budget)
        train += pictures
        trial_bytes += trials * data.n_chans * data.n_times * part.eeg.dtype.itemsize
        val += int(np.count_nonzero(used[np.isin(part.image_index, data.split.val)]))
    # A network's training rows stay where it was trained; averages are counted with the fit.
    elsewhere = cfg.trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    none = cfg.encoder.name == "ridge" or cfg.data.repetitions == "average" or cfg.loader.on_device is False
    return _Rows(train, val, 0 if none or elsewhere else trial_bytes)


def _needed(data: ThingsDataModule, rows: _Rows, bins: int, free: int) -> int:
    """Bytes that are in use at the peak of the fit and not now: rows that the data module keeps, and the fit's own."""
    trial, features, dim = data.n_chans * data.n_times, data.n_chans * bins, data.targets["image"].dim
    kept = (4 * rows.train * trial, 4 * rows.val * trial, rows.kept)
    in_memory = sum(size for size in kept if size <= SHARE * free)  # else they are read when they are asked for
    # While rows are gathered, or their Gram matrix: a block as read, its bins, these normalised, the block before.
    block = 4 * min(RIDGE_ROWS, rows.train) * (trial + 3 * features)
    gathering = block + 4 * features * (min(rows.train, features) + rows.val + dim)
    solving = fit_bytes(rows.train, features, dim, rows.val)
    network, val, targets = 4 * features * dim, 4 * rows.val * trial, 4 * dim * (rows.train + rows.val)
    return REST + in_memory + network + val + targets + max(gathering, solving)
