"""Options of training: augmentation, averaged weights, which epoch is kept, starting weights, short recordings."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eegrecon
from eegrecon.analysis.protocol import Protocol
from eegrecon.artifacts import read_manifest
from eegrecon.config import load
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.modules.encoder import EncoderModule
from eegrecon.stages import evaluate, train_encoder
from tests.builders import build_tiny_set

pytestmark = [pytest.mark.usefixtures("clean_rank"), pytest.mark.filterwarnings("ignore:.*does not have many workers")]
TRAINER = "trainer={accelerator: cpu, devices: 1, max_epochs: 3, enable_progress_bar: false, num_sanity_val_steps: 0}"
SMALL = ("data.split.val_concepts=4", "loader.batch_size=16", "baseline_ridge=false", "loss.vae_latent=0",
         "latent_target.name=''", "encoder={name: mlp, args: {hidden: [16]}}", TRAINER)  # fmt: skip
LOSO = ("data.protocol=leave_one_subject_out", "data.subjects=[1,2,3]")
MONITOR = "val/retrieval_top1_4way"
MONITOR_3, MONITOR_5 = (f"select.monitor=val/retrieval_top1_{n}way" for n in (3, 5))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    build_tiny_set(root, train_concepts=16, exemplars=4, subjects=(1, 2, 3))
    return root


def config(root, *overrides, verb="train-encoder", subject=None):
    small = SMALL if verb == "train-encoder" else ("data.split.val_concepts=4", "pictures=false")
    return load(verb, "pocket", None, [f"data.root={root}", *small, *overrides], subject)


def run(root, directory, *overrides, subject=None):
    cfg = config(root, *overrides, subject=subject)
    return train_encoder.run(cfg, directory=directory, command="test")


def weights(directory):
    return load_file(directory / "model.safetensors")


AUGMENT = "augment={time_shift: 0.02, channel_dropout: 0.2, noise: 0.3, mixup: 0.4}"


def test_augmentation_reaches_training_rows_and_no_others(root, tmp_path, monkeypatch):
    seen = {"training_step": [], "validation_step": []}
    for name in seen:
        original = getattr(EncoderModule, name)

        def watch(self, batch, batch_idx, name=name, original=original):
            network = self.network

            def forward(eeg, subject):
                seen[name].append(eeg.detach().clone())
                return type(network).forward(network, eeg, subject)

            network.forward = forward
            try:
                return original(self, batch, batch_idx)
            finally:
                del network.forward

        monkeypatch.setattr(EncoderModule, name, watch)
    run(root, tmp_path / "a", AUGMENT, "seed=5")
    data = train_encoder.build_data(config(root))
    known = {part: {row.numpy().tobytes() for row in data.averaged(part)["eeg"]} for part in ("train", "val")}
    rows = {name: [row.numpy().tobytes() for eeg in batches for row in eeg] for name, batches in seen.items()}
    assert not set(rows["training_step"]) & known["train"]
    assert set(rows["validation_step"]) == known["val"]
    # The same seed, the same rows.
    first = torch.cat(seen["training_step"])
    seen["training_step"].clear()
    run(root, tmp_path / "b", AUGMENT, "seed=5")
    assert torch.equal(first, torch.cat(seen["training_step"]))


def test_averaged_weights_are_exported_and_survive_a_restart(root, tmp_path, monkeypatch):
    plain, ema = run(root, tmp_path / "plain"), run(root, tmp_path / "ema", "ema_decay=0.9", "select.epoch=last")
    assert not plain.selection["ema"]
    assert ema.selection["ema"]
    name = "encoder.layers.0.weight"
    assert not torch.equal(weights(tmp_path / "plain")[name], weights(tmp_path / "ema")[name])
    assert weights(tmp_path / "ema")["known_subjects"].tolist() == [1]

    class StopError(Exception):
        pass

    def stop(self):
        if self.current_epoch == 1:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(EncoderModule, "on_train_epoch_start", stop)
        with pytest.raises(StopError):
            run(root, tmp_path / "killed", "ema_decay=0.9", "select.epoch=last")
    run(root, tmp_path / "killed", "ema_decay=0.9", "select.epoch=last")
    for key, value in weights(tmp_path / "ema").items():
        torch.testing.assert_close(weights(tmp_path / "killed")[key], value, atol=1e-6, rtol=1e-6, msg=key)


def test_the_last_epoch_or_the_best_one_and_the_rule_is_said(root, tmp_path):
    best, last = run(root, tmp_path / "best"), run(root, tmp_path / "last", "select.epoch=last")
    assert last.selection["epoch"] == 2
    assert (best.selection["rule"], last.selection["rule"]) == (f"best {MONITOR}", "last epoch")
    for directory, rule in (("best", f"best {MONITOR}"), ("last", "last epoch")):
        payload = json.loads((tmp_path / directory / "metrics.json").read_text())
        assert Protocol.from_metrics(payload["protocol"]).selection == rule
    metrics = json.loads((tmp_path / "last" / "metrics.json").read_text())["metrics"]
    assert metrics[MONITOR]["value"] == pytest.approx(last.selection["value"])


def test_patience_ends_training_early(root, tmp_path):
    many = TRAINER.replace("max_epochs: 3", "max_epochs: 60")
    manifest = run(root, tmp_path / "run", "select.patience=2", "optim.args.lr=0.0", many)
    assert manifest.selection["epochs"] == 3  # the first counts as better than nothing, then two that are not
    assert manifest.selection["epoch"] == 0


def test_speed_and_size_are_recorded(root, tmp_path):
    manifest = run(root, tmp_path / "run")
    assert manifest.metrics["n_parameters"] == 63 * 250 * 16 + 16 + 16 * 256 + 256 + 1
    assert manifest.metrics["train/trials_per_second"] > 0


@pytest.fixture(scope="module")
def left_out(root, tmp_path_factory):
    """A run that has never met subject 3, with a layer for every subject."""
    home = tmp_path_factory.mktemp("loso")
    enigma = "encoder={name: enigma, args: {width: 8, n_subjects: 3}}"
    run(root, home / "encoder", *LOSO, enigma, "subject_dropout=0.3", subject=3)
    return home


ENIGMA = "encoder={name: enigma, args: {width: 8, n_subjects: 3}}"


def test_a_subject_that_was_left_out_is_a_stranger_and_its_ids_are_not_used(root, left_out):
    network = eegrecon.load(left_out / "encoder")
    assert network.known_subjects.tolist() == [1, 2]
    eeg = torch.randn(1, 63, 250)
    with torch.inference_mode():
        with_ids = [network(eeg, torch.tensor([subject])) for subject in (1, 2, 3, 0)]
    torch.testing.assert_close(with_ids[2], with_ids[3], atol=0, rtol=0)
    assert not torch.allclose(with_ids[0], with_ids[1])
    table = network.encoder.subject.weight
    moved = (table.detach() - torch.eye(8)).abs().amax((1, 2))
    assert moved[3] < 2e-4  # weight decay alone: nothing was learnt for who was not there
    assert moved[[0, 1, 2]].min() > 1e-3  # the stranger's row was


CALIBRATION = ("data.keep_minutes=0.2", "data.seconds_per_trial=0.3", "data.split.val_concepts=4")


def test_a_calibration_uses_so_many_trials_and_says_so(root, left_out, tmp_path):
    start = f"init.run={left_out}"
    shutil.copytree(left_out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "encoder")
    manifest = run(root, tmp_path / "run" / "encoder", start, ENIGMA, *CALIBRATION, "select.epoch=last", subject=3)
    assert manifest.data["trials_per_subject"] == 40
    assert "init" in manifest.inputs
    data = train_encoder.build_data(config(root, *CALIBRATION, "data.repetitions=each", subject=3))
    assert len(data.dataset("train")) + len(data.dataset("val")) == 40
    assert len(data.dataset("val")) == 4
    network, before = eegrecon.load(tmp_path / "run" / "encoder"), eegrecon.load(left_out / "encoder")
    assert network.known_subjects.tolist() == [1, 2]  # subject 3 is still told apart from them by being unknown
    assert not torch.equal(network.encoder.subject.weight[0], before.encoder.subject.weight[0])
    torch.testing.assert_close(
        network.encoder.subject.weight[1:3], before.encoder.subject.weight[1:3], atol=0.02, rtol=0
    )
    cfg = config(root, verb="evaluate", subject=3)
    evaluate.run(cfg, directory=tmp_path / "run" / "evaluate", command="test")
    payload = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())
    stamp = Protocol.from_metrics(payload["protocol"])
    assert stamp.training == "leave_one_subject_out + calibration 0.2 min"
    assert stamp.selection == "last epoch"


def test_training_starts_exactly_where_the_other_run_ended(root, left_out, tmp_path):
    frozen = ("optim.args.lr=0.0", "optim.args.weight_decay=0.0")
    run(root, tmp_path / "encoder", f"init.run={left_out}", ENIGMA, *CALIBRATION, *frozen, subject=3)
    before, after = weights(left_out / "encoder"), weights(tmp_path / "encoder")
    statistics = {name for name in before if "running" in name or "tracked" in name}
    for name in set(before) - statistics:
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize(
    ("overrides", "subject", "error", "words"),
    [
        ((*CALIBRATION, ENIGMA), 1, ArtifactError, "was trained on subject 1, whom data.keep_minutes"),
        ((*CALIBRATION, ENIGMA, "data.window=[0.0,0.8]"), 3, ArtifactError, "window .*there, .*here"),
        (CALIBRATION, 3, ArtifactError, "holds another network than this config's encoder 'mlp'"),
        ((ENIGMA, "data.keep_minutes=0.01"), 3, ConfigError, "validation takes 4 of them"),
        ((ENIGMA, "data.keep_minutes=-1"), 3, ConfigError, "data.keep_minutes is -1"),
        ((ENIGMA, *LOSO), 1, ArtifactError, "was trained on subject 1, whom this run leaves out"),
        (
            (ENIGMA, "data.split.split_seed=5"),
            3,
            ArtifactError,
            "concepts that this run validates on .*4 with split_seed 0",
        ),
        ((ENIGMA, "data.split.val_concepts=5", MONITOR_5), 3, ArtifactError, "it held out 4 .*here 5 with"),
        ((ENIGMA, "permute_labels=true"), 3, ArtifactError, "permute_labels False there, True here"),
        (("encoder={name: ridge}", AUGMENT, "ema_decay=0.9"), 3, ConfigError, "ema_decay is set.*augment is set"),
        (("select.patience=2", "select.epoch=last"), 3, ConfigError, "select.patience may stop before"),
    ],
)
def test_what_does_not_fit_with_the_initial_run_is_one_sentence(
    root, left_out, tmp_path, overrides, subject, error, words
):
    start = () if "ridge" in overrides[0] else (f"init.run={left_out}",)
    with pytest.raises(error, match=words):
        run(root, tmp_path / "encoder", *start, *overrides, subject=subject)
    assert not (tmp_path / "encoder" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("encoder={name: enigma, args: {n_subjects: 2}}",), "holds 3, but .* subjects 1 to 2: set"),
        ((ENIGMA, *LOSO), "subject 3, who is left out, .* which nothing trains while subject_dropout is 0: set"),
    ],
)
def test_a_subject_without_a_row_that_was_trained_is_refused(root, tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=words):
        run(root, tmp_path / "encoder", *overrides, subject=3)


def test_what_training_started_from_is_in_the_stamp_and_is_not_forgotten(root, left_out, tmp_path):
    manifest = run(
        root, tmp_path / "encoder", f"init.run={left_out}", ENIGMA, "data.split.val_concepts=3", MONITOR_3, subject=3
    )
    assert manifest.selection["training"] == "within_subject from leave_one_subject_out"
    assert manifest.selection["met_subjects"] == [1, 2, 3]
    stamp = Protocol.from_metrics(json.loads((tmp_path / "encoder" / "metrics.json").read_text())["protocol"])
    assert stamp.training == manifest.selection["training"]
    # Its own data block names subject 3 alone, but its weights have met 1 and 2.
    again = (f"init.run={tmp_path}", ENIGMA, "data.split.val_concepts=3", MONITOR_3, "data.subjects=[1,2]", LOSO[0])
    with pytest.raises(ArtifactError, match="was trained on subject 1, whom this run leaves out"):
        run(root, tmp_path / "again" / "encoder", *again, subject=1)


def test_eeg_can_be_left_as_the_store_holds_it(root, tmp_path):
    run(root, tmp_path / "run", "standardise_eeg=false")
    found = weights(tmp_path / "run")
    assert found["channel_mean"].unique().tolist() == [0.0]
    assert found["channel_std"].unique().tolist() == [1.0]


def test_bfloat16_trains_and_is_said(root, tmp_path):
    manifest = run(root, tmp_path / "run", TRAINER.replace("devices: 1", "devices: 1, precision: bf16-mixed"))
    assert manifest.precision == "bf16-mixed"
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(tmp_path / "run").values())
    assert np.isfinite(read_manifest(tmp_path / "run").metrics[MONITOR])


@pytest.mark.slow
def test_a_compiled_network_saves_the_names_of_an_ordinary_one(root, tmp_path):
    if shutil.which("gcc") is None and shutil.which("c++") is None:
        pytest.skip("torch.compile on CPU needs a C++ compiler")
    # In processes of their own: the tests' checks of shapes cannot be compiled.
    for name in ("plain", "compiled"):
        # compiled dropout draws other numbers
        words = [f"data.root={root}", *SMALL, f"compile={name == 'compiled'}", "encoder.args.dropout=0.0"]
        command = [sys.executable, "-m", "eegrecon", "train-encoder", "--exp", "pocket", "--run", str(tmp_path / name)]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    plain, compiled = weights(tmp_path / "plain" / "encoder"), weights(tmp_path / "compiled" / "encoder")
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=2e-3, rtol=1e-2, msg=name)
