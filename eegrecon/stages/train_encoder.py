"""`train-encoder`: stage 1, from training EEG to an encoder, its embeddings and a ridge baseline."""

import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from eegrecon.artifacts import (
    Manifest,
    atomic_write,
    input_record,
    open_stage,
    read_manifest,
    save_embeds,
    write_json,
    write_manifest,
)
from eegrecon.callbacks.monitoring import TrainingMonitor
from eegrecon.callbacks.resume import EpochSeed
from eegrecon.callbacks.retrieval import RetrievalCallback
from eegrecon.config import ENCODERS, LATENT_HEADS, OPTIMS, Choice, config_hash, to_yaml
from eegrecon.data.batches import whole
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ConfigError
from eegrecon.metrics.functional.retrieval import RetrievalScores, binomial_interval, concept_retrieval
from eegrecon.models.encoders.ridge import Ridge, fit_ridge, fit_ridge_in_blocks
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.modules.encoder import EncoderModule
from eegrecon.registry import check_args, lookup, resolve
from eegrecon.stages.data_module import data_module
from eegrecon.stages.trainer import build_trainer as stage_trainer
from eegrecon.stages.trainer import checkpoints, trained_manifest

STAGE = "train-encoder"
MODEL, BASELINE, METRICS = "model.safetensors", "baseline_ridge.safetensors", "metrics.json"
RIDGE_ROWS = 2048  # a block for ridge: 130 MB of 63 channels at 250 samples
# Trainer flags that would leave no epoch to publish, or one chosen on something else than the whole validation split.
_NEEDED_FLAGS = {
    "fast_dev_run": (False, 0),
    "enable_checkpointing": (True, None),
    "limit_val_batches": (1.0, None),
    "check_val_every_n_epoch": (1,),
    "val_check_interval": (1.0, None),
    "use_distributed_sampler": (False,),
}


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Train an encoder, or fit it in closed form if it is `ridge`.

    Writes `model.safetensors` (an `AlignedEncoder` at the selected epoch), `embeds/{train,val}.safetensors`,
    `metrics.json`, `tensorboard/`, `baseline_ridge.safetensors` (a plain `Ridge` on EEG in the store's unit) if wanted
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
    data = build_data(cfg)
    check_config(cfg, data)
    stores = [*(store.path for store in data.trials), *(store.path for store in data.targets.values())]
    inputs = {f"{path.parent.name}/{path.name}": input_record(path) for path in stores}
    state = open_stage(directory, STAGE, config_hash(cfg), to_yaml(cfg), inputs, overwrite)
    if state == "up_to_date":
        return read_manifest(directory)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    network = build_network(cfg, data)
    trainer = build_trainer(cfg, directory)
    if isinstance(network.encoder, Ridge):
        selection = _fit_closed_form(network.encoder, data, network)
    else:
        selection = _train(cfg, network, data, trainer, last=directory / "checkpoints" / "last.ckpt", state=state)
    interface = data.targets["image"].interface()
    if network.latent_head is not None:
        interface["latent_shape"] = list(data.target_shapes["vae_latent"])
    manifest = trained_manifest(
        STAGE,
        command,
        cfg,
        trainer,
        data=data.describe(),
        interface=interface,
        inputs=inputs,
        selection=selection,
    )
    trainer.strategy.barrier()
    if not trainer.is_global_zero:
        return manifest
    network = network.to(trainer.strategy.root_device).eval()
    files = [MODEL, METRICS]
    _save(network, directory / MODEL)
    scores = {}
    for part in ("train", "val"):
        rows = _embed(network, data, part)
        names = ("eeg_embeds", "image_index", "subject", "repetition")
        eeg_embeds, image_index, subject, repetition = (rows[name].numpy() for name in names)
        save_embeds(directory / "embeds" / f"{part}.safetensors", eeg_embeds, image_index, subject, repetition)
        files.append(f"embeds/{part}.safetensors")
    scores[""] = _retrieval(rows["eeg_embeds"], rows)
    if cfg.baseline_ridge:
        baseline = Ridge(data.n_chans, data.n_times, data.targets["image"].dim)
        fitted = _fit_closed_form(baseline, data, network, raw=True)
        _save(baseline, directory / BASELINE)
        files.append(BASELINE)
        scores["_ridge"] = _retrieval(_embed(baseline, data, "val")["eeg_embeds"], rows)
        selection["ridge_alpha"] = fitted["alpha"]
    payload = _metrics(cfg, data, scores)
    write_json(directory / METRICS, payload)
    manifest.metrics = {name: entry["value"] for name, entry in payload["metrics"].items()}
    manifest.outputs = {name: {} for name in files}
    manifest.wall_seconds = time.monotonic() - started
    _print_scores(payload)
    return write_manifest(directory, manifest)


def build_data(cfg: Any) -> ThingsDataModule:
    """The data of stage 1; headers are read and checked, arrays are not.

    Raises:
        ConfigError: A latent loss without a latent target.
        DataError: A store is missing or broken.
    """
    targets = {"image": cfg.target}
    if cfg.loss.vae_latent > 0:
        if not cfg.latent_target.name:
            raise ConfigError(
                f"loss.vae_latent is {cfg.loss.vae_latent} but latent_target.name is empty: name a target store, or "
                "set loss.vae_latent to 0."
            )
        targets["vae_latent"] = cfg.latent_target
    return data_module(
        "encoder", cfg.data, targets, seed=cfg.seed, loader=cfg.loader, permute_labels=cfg.permute_labels
    )


def check_config(cfg: Any, data: ThingsDataModule) -> None:
    """Refuse, before anything is read or written, what would fail or be ignored later.

    Raises:
        ConfigError: Lists every problem.
    """
    problems = []
    n_way = data.split.val_concepts
    if n_way < 2:
        problems.append(f"data.split.val_concepts is {n_way}, but an epoch is selected on at least 2 concepts")
    offered = [f"val/retrieval_top1_{n_way}way", f"val/retrieval_top5_{n_way}way", "val/contrastive", "val/mse"]
    offered += ["val/vae_latent"] * (cfg.loss.vae_latent > 0)
    if cfg.select.monitor not in offered:
        problems.append(f"select.monitor is {cfg.select.monitor!r}, expected one of {', '.join(offered)}")
    elif cfg.select.mode != ("max" if "retrieval" in cfg.select.monitor else "min"):
        problems.append(f"select.mode is {cfg.select.mode!r}, which would select the worst {cfg.select.monitor}")
    for name, allowed in _NEEDED_FLAGS.items():
        if name in cfg.trainer and cfg.trainer[name] not in allowed:
            problems.append(f"trainer.{name} is {cfg.trainer[name]!r}, but train-encoder needs {allowed[0]!r}")
    for name in ("callbacks", "logger"):
        if cfg.trainer.get(name) not in (None, True):
            problems.append(f"trainer.{name} is set by the stage")
    if problems:
        raise ConfigError("This config cannot be trained: " + "; ".join(problems) + ".")
    check_args(lookup(OPTIMS, cfg.optim.name), cfg.optim, {"params": None})


def build_network(cfg: Any, data: ThingsDataModule) -> AlignedEncoder:
    """Encoder and latent head with the training data's channel moments (reads the training EEG)."""
    shapes = data.target_shapes
    dim = data.targets["image"].dim
    encoder = resolve(ENCODERS, cfg.encoder, n_chans=data.n_chans, n_times=data.n_times, dim=dim)
    head = None
    # Ridge is a closed form for one target; a head beside it would stay untrained.
    if "vae_latent" in shapes and not isinstance(encoder, Ridge):
        head = resolve(LATENT_HEADS, cfg.latent_head, dim=dim, latent_shape=shapes["vae_latent"])
    return AlignedEncoder(encoder, head, data.channel_mean, data.channel_std)


def build_trainer(cfg: Any, directory: Path) -> lightning.Trainer:
    """The trainer of the config's `trainer` block with this stage's callbacks."""
    saves = checkpoints(directory, cfg.select.monitor, cfg.select.mode)
    callbacks = [EpochSeed(cfg.seed), TrainingMonitor(), RetrievalCallback(), *saves]
    # The data module shares rows out itself.
    return stage_trainer(STAGE, cfg.trainer, directory, callbacks, use_distributed_sampler=False)


def optimizer_factory(choice: Choice) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """From a config's `optim` to what a module calls with its parameters."""
    return lambda parameters: resolve(OPTIMS, choice, params=parameters)


def _train(
    cfg: Any, network: AlignedEncoder, data: ThingsDataModule, trainer: lightning.Trainer, *, last: Path, state: str
) -> dict[str, Any]:
    """Trains, puts the selected epoch's weights into the network and says which epoch that was."""
    weights = {"contrastive": cfg.loss.contrastive, "mse": cfg.loss.mse, "vae_latent": cfg.loss.vae_latent}
    module = EncoderModule(network, optimizer_factory(cfg.optim), **weights)
    with warnings.catch_warnings():
        # It is our own unfinished run that is there.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        trainer.fit(module, datamodule=data, ckpt_path=last if state == "resume" else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.strategy.barrier()
    checkpoint = trainer.checkpoint_callback  # the first: `best`
    assert isinstance(checkpoint, ModelCheckpoint)
    best = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"], strict=True)
    score = checkpoint.best_model_score
    return {
        "epoch": int(best["epoch"]),
        "monitor": cfg.select.monitor,
        "value": None if score is None else float(score),
        "ema": False,
    }


def _fit_closed_form(
    ridge: Ridge, data: ThingsDataModule, network: AlignedEncoder, *, raw: bool = False
) -> dict[str, Any]:
    """Fits ridge on averaged, channel-normalised training EEG, its penalty chosen by validation retrieval.

    Args:
        ridge: Takes the weights.
        data: Training and validation trials.
        network: Whose channel moments normalise.
        raw: Fold the normalisation into the weights, for EEG in the store's unit.
    """
    mean, std = network.channel_mean.cpu()[:, None], network.channel_std.cpu()[:, None]
    train, val = data.averages("train"), data.averaged("val")

    def pair(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return ((batch["eeg"] - mean) / std).flatten(1), batch["targets"]["image"]

    def score(pred: Tensor) -> float:
        return _retrieval(pred, {**val, "image_embeds": val["targets"]["image"]}).top1

    val_x, _ = pair(val)
    if len(train) <= val_x.shape[1]:
        fit = fit_ridge(*pair(whole(train)), val_x=val_x, score=score, alphas=ridge.alphas)
    else:  # the trials of many subjects, which need not be in memory together
        blocks = (pair(train.__getitems__(rows)) for rows in torch.arange(len(train)).split(RIDGE_ROWS))
        fit = fit_ridge_in_blocks(blocks, val_x=val_x, score=score, alphas=ridge.alphas)
    weight, bias = fit.weight, fit.bias
    if raw:
        shape = (-1, len(mean), weight.shape[1] // len(mean))
        weight = (weight.view(shape) / std).flatten(1)
        bias = bias - (weight.view(shape) * mean).sum((1, 2))
    ridge.set_weights(weight, bias)
    scores = {str(alpha): score for alpha, score in fit.scores.items()}
    monitor = f"val/retrieval_top1_{data.split.val_concepts}way"
    value = fit.scores[fit.alpha]
    return {"closed_form": True, "alpha": fit.alpha, "scores": scores, "monitor": monitor, "value": value}


@torch.inference_mode()
def _embed(network: nn.Module, data: ThingsDataModule, part: str) -> dict[str, Tensor]:
    """Every row of a part once: eeg_embeds, image_embeds (n, dim) and ids (n,), on the CPU."""
    device = next(network.parameters()).device
    names = ("image_index", "concept_index", "subject", "repetition")
    rows: dict[str, list[Tensor]] = {name: [] for name in (*names, "eeg_embeds", "image_embeds")}
    for batch in data.embed_dataloader(part):  # type: ignore[arg-type]
        embeds = network(batch["eeg"].to(device), batch["subject"].to(device))
        rows["eeg_embeds"].append(embeds.float().cpu())
        rows["image_embeds"].append(batch["targets"]["image"])
        for name in names:
            rows[name].append(batch[name])
    return {name: torch.cat(values) for name, values in rows.items()}


def _retrieval(eeg_embeds: Tensor, rows: dict[str, Tensor]) -> RetrievalScores:
    return concept_retrieval(eeg_embeds, rows["image_embeds"], rows["image_index"], rows["concept_index"])


def _save(network: nn.Module, path: Path) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_write(path) as file:
        file.write(save(state))


def _metrics(cfg: Any, data: ThingsDataModule, scores: dict[str, RetrievalScores]) -> dict[str, Any]:
    """The payload of metrics.json; the interval counts every trial as independent, though ten share a concept."""
    metrics = {}
    for suffix, score in scores.items():
        for k, value in ((1, score.top1), (5, score.top5)):
            interval = binomial_interval(value * score.n_queries, score.n_queries)
            metrics[f"val/retrieval_top{k}_{score.n_way}way{suffix}"] = {"value": value, "ci95": list(interval)}
    first = scores[""]
    protocol = {
        "set": cfg.data.set,
        "subjects": data.subjects,
        "test_subjects": data.test_subjects,
        "split": data.split.describe(),
        "retrieval": "cosine; one picture per concept in a gallery, one gallery per exemplar, all trials averaged",
        "n_queries": first.n_queries,
        "chance": {"top1": 1 / first.n_way, "top5": min(1.0, 5 / first.n_way)},
        "permuted_labels": cfg.permute_labels,
        "target": data.targets["image"].interface(),
        "seed": cfg.seed,
    }
    return {"schema": 1, "protocol": protocol, "metrics": metrics}


def _print_scores(payload: dict[str, Any]) -> None:
    console = Console(stderr=True, highlight=False)
    for name, entry in payload["metrics"].items():
        low, high = entry["ci95"]
        chance = payload["protocol"]["chance"]["top1" if "top1" in name else "top5"]
        console.print(f"{name}: {entry['value']:.3f} [{low:.3f}, {high:.3f}], chance {chance:.3f}", markup=False)
