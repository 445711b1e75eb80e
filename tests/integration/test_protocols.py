"""The chain under the protocols of several subjects: who is in which stage, and who never is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import eegrecon
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.config import load
from eegrecon.data import trial_dir
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.metrics.features import picture_tensor
from eegrecon.stages import evaluate, reconstruct, train_encoder, train_prior
from tests.builders import build_tiny_set
from tests.builders_sdxl import tiny_sdxl

pytestmark = pytest.mark.usefixtures("clean_rank")
EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "pocket"
STAGES = {
    "train-encoder": train_encoder, "train-prior": train_prior, "reconstruct": reconstruct, "evaluate": evaluate
}  # fmt: skip
LOSO = ("data.protocol=leave_one_subject_out", "data.subjects=[1,2,3]")
JOINT = ("data.protocol=joint", "data.subjects=[1,2]")
TRAINER = "trainer={accelerator: cpu, devices: 1, max_epochs: 1, enable_progress_bar: false, num_sanity_val_steps: 0}"
N = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_tiny_set(home / "data", test_concepts=N, subjects=(1, 2, 3))
    tiny_sdxl(home / "sdxl", dim=256, conditioning={"model": "pocket_clip", "weights_tag": "tiny", "dim": 256})
    return home


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    def pixels(pictures):
        return picture_tensor(pictures, 4).flatten(1)

    monkeypatch.setattr(evaluate, "load_judge", lambda name: pixels)
    monkeypatch.setattr(evaluate, "load_target_space", lambda interface: pixels)


def go(home, run, verb, protocol, subject, *overrides, data="data", **keywords):
    words = [f"data.root={home / data}", "data.split.val_concepts=4", *protocol]
    file = EXPERIMENT / ("encoder.yaml" if verb == "train-encoder" else f"{verb.removeprefix('train-')}.yaml")
    if verb == "train-encoder":
        words += ["encoder={name: ridge}", "loader.batch_size=8", "data.repetitions=each", TRAINER]
    if verb == "train-prior":
        words += ["prior.args={hidden: [16, 8], time_embed_dim: 8}", "loader.batch_size=16", TRAINER]
        words += ["sample.num_inference_steps=2", "data.repetitions=each", "trainer.check_val_every_n_epoch=1"]
    if verb == "reconstruct":
        words += [f"generator.args={{base: {home / 'sdxl'}, num_inference_steps: 2, size: 16}}", "batch_size=4"]
        words += ["sample.num_inference_steps=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    cfg = load(verb, None, file, [*words, *overrides], subject)
    folder = verb.removeprefix("train-") + cfg.data.tested_suffix
    STAGES[verb].run(cfg, directory=run / folder, command="test", **keywords)
    return run / folder


@pytest.fixture(scope="module")
def left_out(home):
    for verb in ("train-encoder", "train-prior"):
        go(home, home / "left_out", verb, LOSO, 3)
    return home / "left_out"


def keep_only_tests_of_the_third(data: Path, target: Path) -> Path:
    """A copy in which the EEG of everything but subject 3's test trials cannot be opened."""
    root = Path(shutil.copytree(data, target)) / "pocket"
    for subject in (1, 2, 3):
        for file in trial_dir(root, subject).glob("*_eeg.npy"):
            if (subject, file.name) != (3, "test_eeg.npy"):
                file.unlink()
                file.mkdir()
    return target


def test_the_subject_left_out_is_met_by_reconstruct_alone(home, left_out):
    encoder, prior = read_manifest(left_out / "encoder"), read_manifest(left_out / "prior")
    for manifest in (encoder, prior):
        assert manifest.data["subjects"] == [1, 2]
        assert manifest.data["test_subjects"] == [3]
    assert {name for name in encoder.inputs if "trials" in name} == {"trials/sub-01", "trials/sub-02"}
    for part in ("train", "val"):
        assert set(load_embeds(left_out / "encoder" / "embeds" / f"{part}.safetensors")["subject"]) == {1, 2}
    keep_only_tests_of_the_third(home / "data", home / "blind")
    done = go(home, left_out, "reconstruct", LOSO, 3, data="blind")
    manifest = read_manifest(done)
    assert (manifest.data["subjects"], manifest.data["test_subjects"]) == ([1, 2], [3])
    assert manifest.inputs["trials"]["path"].endswith("trials/sub-03")
    assert set(load_embeds(done / "embeds" / "test.safetensors")["subject"]) == {3}
    protocol = json.loads((done / "metrics.json").read_text())["protocol"]
    assert protocol["protocol"] == "leave_one_subject_out"
    assert (protocol["subjects"], protocol["test_subjects"]) == ([1, 2], [3])
    assert protocol["repetitions"] == "test: mean of 3"
    again = go(home, left_out, "evaluate", LOSO, 3)
    assert read_manifest(again).metrics == manifest.metrics
    with pytest.raises(ArtifactError, match=r"made with data\.subjects \[1, 2\], but this config asks for \[1, 3\]"):
        go(home, left_out, "reconstruct", LOSO, 2)


def test_fewer_test_trials_are_another_result(home, left_out):
    run = Path(shutil.copytree(left_out, home / "fewer", ignore=shutil.ignore_patterns("reconstruct", "evaluate")))
    done = go(home, run, "reconstruct", LOSO, 3, "data.keep_repetitions=1")
    raw = np.load(trial_dir(home / "data" / "pocket", 3) / "test_eeg.npy").astype(np.float32)
    with torch.inference_mode():
        want = eegrecon.load(run / "encoder")(torch.from_numpy(raw[:, 0]), torch.full((N,), 3))
    found = load_embeds(done / "embeds" / "test.safetensors")["eeg_embeds"]
    np.testing.assert_allclose(found, want.numpy(), atol=1e-4)
    assert json.loads((done / "metrics.json").read_text())["protocol"]["repetitions"] == "test: mean of 1"


def test_one_joint_encoder_is_tested_on_each_subject(home):
    run = home / "joint"
    for subject in (1, 2):
        for verb in ("train-encoder", "train-prior"):
            before = (run / verb.removeprefix("train-") / "manifest.json").exists()
            assert before == (subject == 2)  # the second subject finds both up to date
            go(home, run, verb, JOINT, subject)
        done = go(home, run, "reconstruct", JOINT, subject)
        assert done.name == f"reconstruct-sub-{subject:02d}"
        manifest = read_manifest(done)
        assert (manifest.data["subjects"], manifest.data["test_subjects"]) == ([1, 2], [subject])
        assert set(load_embeds(done / "embeds" / "test.safetensors")["subject"]) == {subject}
        assert read_manifest(go(home, run, "evaluate", JOINT, subject)).metrics == manifest.metrics
    assert read_manifest(run / "encoder").data["test_subjects"] == [1, 2]
    with pytest.raises(ConfigError, match=r"pictures of one subject at a time, .* name one with --subject N"):
        go(home, run, "reconstruct", JOINT, None)
