"""`train-low-level`: the low-level pathway, from training EEG to a network that predicts VAE latents of pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import (
    Manifest,
    atomic_write,
    input_record,
    open_stage,
    read_manifest,
    write_json,
    write_manifest,
)
from eegrecon.config import TrainLowLevelConfig, config_hash, to_dict, to_yaml
from eegrecon.data.layout import target_dir
from eegrecon.stages.low_level_checks import STAGE, check_config, check_target

if TYPE_CHECKING:
    from torch import Tensor

    from eegrecon.datamodule import ThingsDataModule
    from eegrecon.models.low_level.wrapper import LowLevelDecoder

WEIGHTS, METRICS, LATENTS = "model.safetensors", "metrics.json", "latents/val.safetensors"


def run(cfg: TrainLowLevelConfig, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Train the low-level network; select and score it on held-out concepts. Test files are never opened.

    `network.name=ridge` is fitted in closed form. Writes `model.safetensors` (`LowLevelDecoder` at the selected epoch),
    `latents/val.safetensors` (predicted latents of the validation pictures, repetitions averaged), `metrics.json`,
    `tensorboard/` and, last, the manifest. A killed run continues from `checkpoints/last.ckpt`.

    Args:
        cfg: The resolved config.
        directory: The run's `low_level/`.
        command: What was typed.
        overwrite: Replace a finished result.

    Returns:
        The manifest (on other ranks than 0 an unwritten one).

    Raises:
        ConfigError: The config contradicts itself, the data or the target.
        DataError: Data or the VAE's weights are missing or broken.
        ArtifactError: The directory holds another result, a store is unfinished, or `vae` made other latents.
    """
    started = time.monotonic()
    directory = Path(directory)
    check_config(cfg)
    check_target(cfg)
    import lightning

    from eegrecon.callbacks.low_level import LatentScores
    from eegrecon.stages.fitting import fit, training_trainer
    from eegrecon.stages.low_level_build import build_data, build_module, build_network, fit_closed_form
    from eegrecon.stages.trainer import trained_manifest

    data = build_data(cfg)
    interface = data.targets["vae_latent"].latent_interface()
    autoencoder = open_autoencoder(cfg, interface)
    inputs = input_records(cfg, data)
    if open_stage(directory, STAGE, config_hash(cfg), to_yaml(cfg), inputs, overwrite) == "up_to_date":
        return read_manifest(directory)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    network = build_network(cfg, data)
    trainer = training_trainer(STAGE, cfg, directory, LatentScores(network.latent_mean.clone()))
    selection = fit_closed_form(network, data)
    if selection is None:
        module = build_module(cfg, network, data, autoencoder)
        selection = fit(cfg, module, data, trainer, last=directory / "checkpoints" / "last.ckpt")
    trainer.strategy.barrier()
    manifest = trained_manifest(
        STAGE, command, cfg, trainer, data=data.describe(), interface=interface, inputs=inputs, selection=selection
    )
    if not trainer.is_global_zero:
        return manifest
    network = network.to(trainer.strategy.root_device).eval()
    rows = predict_part(network, data, "val")
    if cfg.match_variance:
        rows["latents"] = match_variance(network, rows)
    manifest.metrics = write_results(cfg, directory, network, data, rows, selection, autoencoder)
    if (rate := selection.pop("trials_per_second", None)) is not None:
        manifest.metrics["train/trials_per_second"] = rate
    manifest.outputs = {name: {} for name in (WEIGHTS, METRICS, LATENTS)}
    manifest.wall_seconds = time.monotonic() - started
    return write_manifest(directory, manifest)


def input_records(cfg: TrainLowLevelConfig, data: ThingsDataModule) -> dict[str, dict[str, str]]:
    """The manifest's `inputs`: every trial store, and the target store."""
    stores = [*(store.path for store in data.trials), target_dir(data.images.set_root, cfg.latent_target.name)]
    return {f"{path.parent.name}/{path.name}": input_record(path) for path in stores}


def open_autoencoder(cfg: TrainLowLevelConfig, interface: dict[str, Any]) -> Any:
    """The autoencoder that `vae` names (`VaeLatents`), None if it names none.

    Raises:
        ArtifactError: It did not make these latents.
        DataError: Its weights are not there.
    """
    if not cfg.vae:
        return None
    from eegrecon.errors import ArtifactError
    from eegrecon.models.generators.latents import load_vae
    from eegrecon.pathways.low_level import differences

    found = load_vae(cfg.vae)
    if wrong := differences(interface, found.vae, cfg.vae):
        raise ArtifactError(
            f"vae is {cfg.vae!r}, which did not make the latents of {cfg.latent_target.name!r}: {'; '.join(wrong)}; "
            "name the autoencoder of the target's model.args.base, or leave vae empty."
        )
    return found


def predict_part(network: LowLevelDecoder, data: ThingsDataModule, part: Any) -> dict[str, Tensor]:
    """Every row of a part once and in order, on the CPU: latents, target_latents (n, c, h, w), and ids (n,)."""
    import torch

    from eegrecon.modules.low_level import IDS, TARGET

    device, parts = network.channel_mean.device, []
    with torch.inference_mode():
        for batch in data.embed_dataloader(part):
            latents = network(batch["eeg"].to(device), batch["subject"].to(device)).float().cpu()
            parts.append({"latents": latents, "target_latents": batch["targets"][TARGET].float()})
            parts[-1] |= {name: batch[name] for name in IDS}
    return {name: torch.cat([rows[name] for rows in parts]) for name in parts[0]}


def match_variance(network: LowLevelDecoder, rows: dict[str, Tensor]) -> Tensor:
    """Set the network's `gain` so that its latents vary as much as the true ones; returns the stretched latents.

    One factor a latent channel: standard deviation of true over that of predicted deviations from the mean latent, over
    validation rows, because training rows are predicted too well.
    """
    import torch

    mean = network.latent_mean.cpu()
    pred, true = rows["latents"] - mean, rows["target_latents"] - mean
    spread = [values.double().square().mean((0, 2, 3)).sqrt() for values in (true, pred)]
    gain = torch.where(spread[1] > 0, spread[0] / spread[1], 1.0).float()[:, None, None]
    network.gain.copy_(gain)
    return mean + gain * pred


def write_results(
    cfg: TrainLowLevelConfig,
    directory: Path,
    network: LowLevelDecoder,
    data: ThingsDataModule,
    rows: dict[str, Tensor],
    selection: dict[str, Any],
    autoencoder: Any,
) -> dict[str, Any]:
    """Write weights, validation latents and scores; returns the headline numbers by name."""
    from safetensors.torch import save

    from eegrecon.callbacks.low_level import score_rows
    from eegrecon.stages.low_level_scores import picture_scores

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    mean = network.latent_mean.cpu()
    ids = {name: rows[name].int() for name in ("image_index", "subject")}
    for name, tensors in ((WEIGHTS, state), (LATENTS, {"latents": rows["latents"].contiguous(), **ids})):
        with atomic_write(directory / name) as file:
            file.write(save(tensors))
    entries: dict[str, Any] = {f"val/{name}": {"value": value} for name, value in score_rows(rows, mean).items()}
    if autoencoder is not None:
        seen = [data.images.load(index) for index in rows["image_index"].tolist()]
        pair = (rows["latents"], rows["target_latents"])
        device = network.channel_mean.device
        entries |= picture_scores(*pair, mean, seen, autoencoder, device, seed=cfg.seed)
    protocol = {
        "split": data.split.describe(),
        "subjects": data.subjects,
        "test_subjects": data.test_subjects,
        "selection": {name: value for name, value in selection.items() if name != "trials_per_second"},
        "network": to_dict(cfg)["network"],
        "latents": data.targets["vae_latent"].latent_interface(),
        "repetitions": "val: all trials of a picture averaged",
        "vae": cfg.vae,
        "match_variance": cfg.match_variance,
        "permuted_labels": cfg.permute_labels,
        "seed": cfg.seed,
    }
    write_json(directory / METRICS, {"schema": 1, "protocol": protocol, "metrics": entries})
    found = {name: entry["value"] for name, entry in entries.items()}
    found["n_parameters"] = sum(value.numel() for value in network.parameters() if value.requires_grad)
    return found
