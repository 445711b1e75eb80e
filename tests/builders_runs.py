"""Finished `encoder/` and `prior/` directories without training, so that later stages can be tested alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from eegrecon.artifacts import input_record, new_manifest, write_manifest
from eegrecon.config import config_hash, load, to_yaml
from eegrecon.data import ImageSet, TargetStore, TargetStoreWriter, TrialStore, target_dir, trial_dir
from eegrecon.datamodule import ThingsDataModule
from eegrecon.models.encoders.ridge import Ridge, fit_ridge
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.models.priors.linear import NoPrior
from eegrecon.models.priors.unet import PriorUNet
from tests.builders import build_tiny_set
from tests.builders_sdxl import tiny_sdxl

PRIOR_ARGS = {"hidden": [16, 8], "time_embed_dim": 8, "dropout": 0.0}


def build_run(
    root: Path, run: Path, *, permute_labels: bool = False, set_name: str = "pocket", prior: str = "unet"
) -> Path:
    """Fit ridge on the tiny set's averaged training trials and keep it as the encoder; the prior is random.

    Args:
        root: What `data.root` names; the tiny set of `tests.builders` lies in it.
        run: The run directory.
        permute_labels: Fit to permuted pictures and say so in the config.
        set_name: Name of the set.
        prior: unet with random weights, or none.
    """
    set_root = root / set_name
    images = ImageSet.from_root(set_root)
    trials = TrialStore(trial_dir(set_root, 1), images)
    partition = trials.open("train")
    x = torch.from_numpy(partition.average()).flatten(1)
    store = TargetStore(target_dir(set_root, "clip-pocket"), images)
    index = partition.image_index
    y = torch.from_numpy(store.rows(np.random.default_rng(0).permutation(index) if permute_labels else index))
    ridge = Ridge(63, trials.n_times, store.dim)
    fit = fit_ridge(x, y, val_x=x, score=lambda pred: -float((pred - y).square().mean()), alphas=[0.1])
    ridge.set_weights(fit.weight, fit.bias)
    shared = [f"data.root={root}", f"data.set={set_name}", "data.subjects=[1]", "data.split.val_concepts=2"]
    experiments = Path(__file__).resolve().parents[1] / "experiments" / "pocket"
    cfg = load(
        "train-encoder",
        file=experiments / "encoder.yaml",
        overrides=[*shared, "encoder={name: ridge}", f"permute_labels={permute_labels}"],
    )
    encoder = run / "encoder"
    encoder.mkdir(parents=True)
    (encoder / "config.yaml").write_text(to_yaml(cfg))
    aligned = AlignedEncoder(ridge, None, torch.zeros(63), torch.ones(63))
    save_file(aligned.state_dict(), encoder / "model.safetensors")
    save_file(ridge.state_dict(), encoder / "baseline_ridge.safetensors")
    module = ThingsDataModule(
        stage="encoder",
        images_root=set_root,
        trial_dirs=[trials.path],
        target_dirs={"image": store.path},
        val_concepts=2,
    )
    data = module.describe()
    manifest = new_manifest(
        "train-encoder",
        command="tests",
        config_hash=config_hash(cfg),
        seed=0,
        data=data,
        interface=store.interface(),
        outputs={"model.safetensors": {}, "baseline_ridge.safetensors": {}},
    )
    write_manifest(encoder, manifest)
    choice = f"prior.args={PRIOR_ARGS}" if prior == "unet" else f"prior.name={prior}"
    _build_prior(run, store, data, [*shared, choice], experiments)
    return run


def _build_prior(run: Path, store: TargetStore, data: dict, overrides: list[str], experiments: Path) -> None:
    cfg = load("train-prior", file=experiments / "prior.yaml", overrides=overrides)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = cfg.prior.name == "unet"
        network = PriorUNet(store.dim, store.dim, **PRIOR_ARGS) if unet else NoPrior(store.dim, store.dim)
    prior = run / "prior"
    prior.mkdir()
    (prior / "config.yaml").write_text(to_yaml(cfg))
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    for name in ("target", "cond"):
        state |= {f"{name}_mean": torch.zeros(store.dim), f"{name}_scale": torch.ones(store.dim)}
    state["cond_unit"] = torch.tensor(False)
    save_file(state, prior / "model.safetensors")
    manifest = new_manifest(
        "train-prior",
        command="tests",
        config_hash=config_hash(cfg),
        seed=0,
        data=data,
        interface=store.interface(),
        inputs={"encoder": input_record(run / "encoder")},
        outputs={"model.safetensors": {}},
    )
    write_manifest(prior, manifest)


def build_chain(home: Path, n_test: int = 6) -> Path:
    """A run that `reconstruct` can follow: `data/`, `sdxl/` and `run/` (with a reconstruct config) under `home`."""
    build_tiny_set(home / "data", test_concepts=n_test)
    tiny_sdxl(home / "sdxl", dim=256, conditioning={"model": "pocket_clip", "weights_tag": "tiny", "dim": 256})
    run = build_run(home / "data", home / "run")
    (run / "reconstruct").mkdir()
    (run / "reconstruct" / "config.yaml").write_text(to_yaml(chain_config(home)))
    return run


def chain_config(home: Path, *overrides: str, exp: str = "pocket") -> Any:
    """What `reconstruct` is told for the run of `build_chain`; `exp` must have the same encoder and prior as pocket."""
    generator = f"{{base: {home / 'sdxl'}, num_inference_steps: 2, guidance_scale: 2.0, size: 16}}"
    words = [f"data.root={home / 'data'}", "data.split.val_concepts=2", f"generator.args={generator}", "batch_size=4"]
    words += ["sample.num_inference_steps=3", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    file = Path(__file__).resolve().parents[1] / "experiments" / exp / "reconstruct.yaml"
    return load("reconstruct", file=file, overrides=[*words, *overrides])


def write_text_store(root: Path, name: str = "text-pocket", dim: int = 256) -> None:
    """A target store of concept names whose embeddings lie near those of the tiny set's pictures."""
    images = ImageSet.from_root(root)
    near = TargetStore(target_dir(root, "clip-pocket"), images)
    noise = np.random.default_rng(0).normal(size=(len(images.records), dim)).astype(np.float32)
    header = {"kind": "text", "model": "pocket_clip", "weights_tag": "tiny", "weights_sha256": "0" * 64}
    header |= {"layer": "text_embeds", "transform": "none", "scaling_factor": None}
    writer = TargetStoreWriter(target_dir(root, name), images, header, (dim,))
    for part, index in (("train", images.train_index), ("test", images.test_index)):
        writer.append(part, near.rows(index)[:, :dim] + noise[index] / 2)
    writer.close()
    manifest = new_manifest("extract-targets", command="tests", config_hash="0" * 64, seed=0)
    manifest.outputs = {file.name: {} for file in target_dir(root, name).iterdir() if not file.name.startswith(".")}
    write_manifest(target_dir(root, name), manifest)
