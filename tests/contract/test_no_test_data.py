"""Training data paths cannot reach test data: every test file is replaced by a folder, and everything still trains.

(As root permission bits stop nobody; a folder of that name makes any attempt to open the file fail.) Under
leave-one-subject-out all files of the subject that is left out are test data, so its store is not there at all.
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


TRAINED = {"within_subject": [1], "leave_one_subject_out": [1, 2], "joint": [1, 2]}  # whom on, of two or three
LEFT_OUT = 3


@pytest.fixture(scope="module")
def blind_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = build_tiny_set(tmp_path_factory.mktemp("blind"), subjects=(1, 2))
    assert hide_test_files(root) == 2 * 3 + 2 * 2  # two trial stores, two target stores
    assert not trial_dir(root, LEFT_OUT).exists()
    return root


def data(root: Path, stage: str, protocol: str = "within_subject", **kw) -> ThingsDataModule:
    return ThingsDataModule(
        stage=stage,
        images_root=root,
        trial_dirs=[trial_dir(root, subject) for subject in TRAINED[protocol]],
        protocol=protocol,
        test_subject=LEFT_OUT if protocol == "leave_one_subject_out" else None,
        target_dirs={"image": target_dir(root, "clip-pocket"), "vae_latent": target_dir(root, "vae-pocket")},
        val_concepts=4,
        batch_size=8,
        **kw,
    )


@pytest.mark.parametrize("protocol", TRAINED)
@pytest.mark.parametrize("repetitions", ["each", "average", {"average": 2}], ids=str)
@pytest.mark.parametrize("permute_labels", [False, True])
def test_encoder_data(blind_set, protocol, repetitions, permute_labels):
    dm = data(blind_set, "encoder", protocol, repetitions=repetitions, permute_labels=permute_labels)
    test = set(dm.images.test_index.tolist())
    for stage in ("fit", "validate", None):
        dm.setup(stage)
    seen = [*dm.train_dataloader(), *dm.val_dataloader(), *dm.embed_dataloader("train"), dm.averaged("train")]
    assert dm.channel_std.shape == (63,)
    assert dm.describe()
    assert not test & set(torch.cat([batch["image_index"] for batch in seen]).tolist())
    assert set(torch.cat([batch["subject"] for batch in seen]).tolist()) == set(TRAINED[protocol])


@pytest.mark.parametrize("protocol", TRAINED)
def test_prior_data(blind_set, tmp_path, protocol):
    dm = data(blind_set, "prior", protocol, upstream=tmp_path)
    for part, index in (("train", dm.split.train), ("val", dm.split.val)):
        n = len(index)
        path = tmp_path / "embeds" / f"{part}.safetensors"
        save_embeds(path, np.zeros((n, 8)), index, np.ones(n), np.full(n, -1))
    dm.setup("fit")
    assert len([*dm.train_dataloader(), *dm.val_dataloader()]) == 3 + 2


def test_the_hidden_files_would_have_been_noticed(blind_set):
    for protocol in ("within_subject", "joint"):
        with pytest.raises(DataError, match=r"test_eeg\.npy is missing"):
            data(blind_set, "reconstruct", protocol).setup("test")
    with pytest.raises(DataError, match=r"trials/sub-03 does not exist"):
        data(blind_set, "reconstruct", "leave_one_subject_out")


@pytest.mark.usefixtures("clean_rank")
@pytest.mark.parametrize("protocol", TRAINED)
def test_both_training_stages_run(blind_set, tmp_path, protocol):
    data_keys = [f"data.root={blind_set.parent}", "data.split.val_concepts=4", "loader.batch_size=8"]
    left_out = [LEFT_OUT] if protocol == "leave_one_subject_out" else []
    data_keys += [f"data.protocol={protocol}", f"data.subjects={TRAINED[protocol] + left_out}"]
    data_keys += [f"data.test_subject={subject}" for subject in left_out]
    quiet = (
        "trainer={accelerator: cpu, devices: 1, max_epochs: 1, check_val_every_n_epoch: 1, enable_progress_bar: false}"
    )
    cfg = load("train-encoder", "pocket", None, [*data_keys, quiet])
    train_encoder.run(cfg, directory=tmp_path / "encoder", command="test")
    small = ["prior.args={hidden: [16, 8], time_embed_dim: 8}", "sample.num_inference_steps=2"]
    cfg = load("train-prior", "pocket", None, [*data_keys, *small, quiet])
    train_prior.run(cfg, directory=tmp_path / "prior", command="test")
    assert read_manifest(tmp_path / "prior").inputs["encoder"]
    stores = {f"trials/sub-{subject:02d}" for subject in TRAINED[protocol]}
    assert {name for name in read_manifest(tmp_path / "encoder").inputs if name.startswith("trials")} == stores
    for folder in ("encoder", "prior"):
        seen = read_manifest(tmp_path / folder).data
        assert seen["subjects"] == TRAINED[protocol]
        assert seen["test_subjects"] == (left_out or TRAINED[protocol])
    for folder in ("encoder", "prior"):
        assert not list((tmp_path / folder).rglob("*test*"))
