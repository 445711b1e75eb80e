"""What a user can get wrong: one clear sentence, exit code 2, nothing half-written. Through the command line."""

import json
import shutil

import numpy as np
import pytest

from eegrecon.cli import main
from tests.builders import build_tiny_set

pytestmark = pytest.mark.usefixtures("clean_rank")
SMALL = ["data.split.val_concepts=4", "loader.batch_size=8", "trainer.accelerator=cpu", "trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("pristine")
    build_tiny_set(root)
    return root


@pytest.fixture
def root(pristine, tmp_path):
    """A copy of the tiny set that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "data")


@pytest.fixture
def refused(tmp_path, capfd):
    """Run `train-encoder`; return the one sentence it refuses with, having checked that nothing was written."""

    def refuse(root, *overrides):
        run = tmp_path / "run"
        words = ["train-encoder", "--exp", "pocket", "--run", str(run), f"data.root={root}", *SMALL, *overrides]
        assert main(words) == 2
        said = capfd.readouterr().err.strip().splitlines()
        sentences = [line for line in said if line.startswith("eegrecon: ")]
        assert len(sentences) == 1, said
        assert "Traceback" not in "".join(said)
        left = [path.name for path in run.rglob("*") if path.is_file()] if run.exists() else []
        assert not {"manifest.json", "model.safetensors", "metrics.json"} & set(left)
        return sentences[0]

    return refuse


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("encoder.nmae=atm_s", "nmae"),
        ("encoder.name=atm_z", "atm_s"),
        ("loader.batch_size=many", "batch_size"),
        ("encoder.args.depth=3", "depth"),
        ("trainer.max_epoch=3", "max_epoch"),
    ],
)
def test_config(root, refused, override, words):
    assert words in refused(root, override)


def test_missing_data_folder_names_the_command_that_makes_it(tmp_path, refused):
    said = refused(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in said
    assert "prepare-data" in said


@pytest.mark.parametrize("left", [0, 1, 64, 127, 128, 5000, -1])
def test_truncated_trials(root, refused, left):
    path = root / "pocket/trials/sub-01/train_eeg.npy"
    content = path.read_bytes()
    path.write_bytes(content[:left])
    assert "train_eeg.npy" in refused(root)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_found_by_picture_and_channel(root, refused, value):
    path = root / "pocket/trials/sub-01/train_eeg.npy"
    eeg = np.load(path, mmap_mode="r+")
    eeg[3, 1, 62, 17] = value
    eeg.flush()
    del eeg
    said = refused(root)
    assert "Oz" in said or "O2" in said
    assert "train/" in said


def test_permuted_channel_names(root, refused):
    path = root / "pocket/trials/sub-01/header.json"
    header = json.loads(path.read_text())
    header["ch_names"][0], header["ch_names"][1] = header["ch_names"][1], header["ch_names"][0]
    path.write_text(json.dumps(header))
    assert "Fp2" in refused(root)


def test_truncated_targets(root, refused):
    path = root / "pocket/targets/clip-pocket/train.npy"
    path.write_bytes(path.read_bytes()[:-100])
    assert "train.npy" in refused(root)


def test_targets_of_other_pictures(root, refused):
    path = root / "pocket/targets/clip-pocket/header.json"
    header = json.loads(path.read_text())
    header["images_sha256"] = "0" * 64
    path.write_text(json.dumps(header))
    assert "clip-pocket" in refused(root)
