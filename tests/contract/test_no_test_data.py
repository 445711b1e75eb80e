"""Training data paths cannot reach test data: every test file is replaced by a folder, and everything still trains.

(As root permission bits stop nobody; a folder of that name makes any attempt to open the file fail.)
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eegrecon.artifacts import read_manifest, save_embeds
from eegrecon.config import load
from eegrecon.data import target_dir, trial_dir
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import DataError
from eegrecon.stages import train_encoder, train_prior
from tests.builders import build_tiny_set


def hide_test_files(root: Path) -> int:
    """Replace every test array by a folder and remove every test picture; returns how many arrays."""
    files = [path for path in root.rglob("test*.npy") if path.is_file()]
    for path in files:
        path.unlink()
        path.mkdir()
    shutil.rmtree(root / "images_set" / "test_images")
    return len(files)


@pytest.fixture(scope="module")
def blind_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = build_tiny_set(tmp_path_factory.mktemp("blind"))
    assert hide_test_files(root) == 3 + 2 * 2  # one trial store, two target stores
    return root


def data(root: Path, stage: str, **kw) -> ThingsDataModule:
    return ThingsDataModule(
        stage=stage,
        images_root=root,
        trial_dirs=[trial_dir(root, 1)],
        target_dirs={"image": target_dir(root, "clip-pocket"), "vae_latent": target_dir(root, "vae-pocket")},
        val_concepts=4,
        batch_size=8,
        **kw,
    )


@pytest.mark.parametrize("repetitions", ["each", "average"])
@pytest.mark.parametrize("permute_labels", [False, True])
def test_encoder_data(blind_set, repetitions, permute_labels):
    dm = data(blind_set, "encoder", repetitions=repetitions, permute_labels=permute_labels)
    test = set(dm.images.test_index.tolist())
    for stage in ("fit", "validate", None):
        dm.setup(stage)
    seen = [*dm.train_dataloader(), *dm.val_dataloader(), *dm.embed_dataloader("train"), dm.averaged("train")]
    assert dm.channel_std.shape == (63,)
    assert dm.describe()
    assert not test & set(torch.cat([batch["image_index"] for batch in seen]).tolist())


def test_prior_data(blind_set, tmp_path):
    dm = data(blind_set, "prior", upstream=tmp_path)
    for part, index in (("train", dm.split.train), ("val", dm.split.val)):
        n = len(index)
        path = tmp_path / "embeds" / f"{part}.safetensors"
        save_embeds(path, np.zeros((n, 8)), index, np.ones(n), np.full(n, -1))
    dm.setup("fit")
    assert len([*dm.train_dataloader(), *dm.val_dataloader()]) == 3 + 2


def test_the_hidden_files_would_have_been_noticed(blind_set):
    dm = data(blind_set, "reconstruct")
    with pytest.raises(DataError, match=r"test_eeg\.npy is missing"):
        dm.setup("test")


@pytest.mark.usefixtures("clean_rank")
def test_both_training_stages_run(blind_set, tmp_path):
    data_keys = [f"data.root={blind_set.parent}", "data.split.val_concepts=4", "loader.batch_size=8"]
    quiet = (
        "trainer={accelerator: cpu, devices: 1, max_epochs: 1, check_val_every_n_epoch: 1, enable_progress_bar: false}"
    )
    cfg = load("train-encoder", "pocket", None, [*data_keys, quiet])
    train_encoder.run(cfg, directory=tmp_path / "encoder", command="test")
    small = ["prior.args={hidden: [16, 8], time_embed_dim: 8}", "sample.num_inference_steps=2"]
    cfg = load("train-prior", "pocket", None, [*data_keys, *small, quiet])
    train_prior.run(cfg, directory=tmp_path / "prior", command="test")
    assert read_manifest(tmp_path / "prior").inputs["encoder"]
    for folder in ("encoder", "prior"):
        assert not list((tmp_path / folder).rglob("*test*"))
