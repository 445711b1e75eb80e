"""Stage 1 from stores to manifest on a tiny set: outputs, resumption, the control, ridge as the encoder."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import eegrecon
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.config import load
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.models.encoders.ridge import Ridge
from eegrecon.modules.encoder import EncoderModule
from eegrecon.stages import ridge_memory, train_encoder
from eegrecon.stages.encoder_scores import load_ridge
from tests.builders import build_tiny_set

pytestmark = pytest.mark.usefixtures("clean_rank")
TRAINER = "trainer={accelerator: cpu, devices: 1, max_epochs: 3, enable_progress_bar: false, num_sanity_val_steps: 0}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    build_tiny_set(root, train_concepts=16, exemplars=4)
    return root


def config(root, *overrides):
    small = ["data.split.val_concepts=4", "loader.batch_size=16", "optim.args.lr=0.001"]
    return load("train-encoder", "pocket", None, [f"data.root={root}", *small, TRAINER, *overrides])


def run(root, directory, *overrides, **keywords):
    return train_encoder.run(config(root, *overrides), directory=directory, command="test", **keywords)


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "encoder"
    run(root, directory)
    return directory


def test_everything_is_written_and_agrees(root, finished):
    manifest = read_manifest(finished)
    assert set(manifest.outputs) == {
        "model.safetensors",
        "baseline_ridge.safetensors",
        "embeds/train.safetensors",
        "embeds/val.safetensors",
        "ranks_val.safetensors",
        "metrics.json",
        "config.yaml",
    }
    assert not (finished / "checkpoints").exists()
    assert list((finished / "tensorboard").iterdir())
    assert manifest.interface["dim"] == 256
    assert manifest.interface["latent_shape"] == [4, 16, 16]
    assert manifest.data["n_times"] == 250
    assert len(manifest.data["channels"]) == 63
    assert manifest.selection["monitor"] == "val/retrieval_top1_4way"
    assert {"trials/sub-01", "targets/clip-pocket", "targets/vae-pocket"} == set(manifest.inputs)
    metrics = json.loads((finished / "metrics.json").read_text())["metrics"]
    assert metrics["val/retrieval_top1_4way"]["value"] == pytest.approx(manifest.selection["value"])
    assert metrics["val/retrieval_top1_4way_ridge"]["value"] > 0.5  # chance 0.25; here the EEG is linear in the target

    data = train_encoder.build_data(config(root))
    network = eegrecon.load(finished)
    for part, n in (("train", 48), ("val", 16)):
        rows = load_embeds(finished / "embeds" / f"{part}.safetensors")
        batch = data.averaged(part)
        assert rows["image_index"].tolist() == batch["image_index"].tolist()
        assert set(rows["repetition"].tolist()) == {-1}
        assert len(rows["eeg_embeds"]) == n
        with torch.inference_mode():
            embeds = network(batch["eeg"], batch["subject"]).numpy()
        np.testing.assert_allclose(rows["eeg_embeds"], embeds, atol=1e-4)

    ridge = Ridge(63, 250, 256)
    ridge.load_state_dict(load_file(finished / "baseline_ridge.safetensors"))
    batch = data.averaged("val")  # in the store's unit
    cosine = torch.cosine_similarity(ridge(batch["eeg"], batch["subject"]), batch["targets"]["image"]).mean()
    assert cosine > 0.3


def test_the_curves_are_in_tensorboard(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    terms = ("contrastive", "mse", "vae_latent")
    assert {f"train/{name}_step" for name in (*terms, "loss")} <= tags
    assert {f"train/{name}_epoch" for name in (*terms, "loss")} <= tags
    assert {f"val/{name}" for name in terms} <= tags
    assert {"train/lr", "train/logit_scale", "train/gradient_norm", "train/trials_per_second"} <= tags
    assert {"val/retrieval_top1_4way", "val/retrieval_top5_4way"} <= tags
    assert [event.step for event in events.Scalars("val/retrieval_top1_4way")] == [2, 5, 8]


def test_a_second_call_is_up_to_date(root, finished):
    before = (finished / "manifest.json").stat().st_mtime_ns
    run(root, finished)
    assert (finished / "manifest.json").stat().st_mtime_ns == before


def test_a_killed_run_continues_as_if_it_had_not_been(root, finished, tmp_path, monkeypatch):
    step = EncoderModule.training_step

    def dies(self, batch, batch_idx):
        if self.current_epoch == 2 and batch_idx == 1:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(EncoderModule, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        run(root, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "model.safetensors").exists()
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1
    seen = []
    monkeypatch.setattr(
        EncoderModule, "training_step", lambda self, *args: (seen.append(self.current_epoch), step(self, *args))[1]
    )
    manifest = run(root, tmp_path)
    assert set(seen) == {2}
    assert manifest.selection == read_manifest(finished).selection
    one, two = (load_file(path / "model.safetensors") for path in (finished, tmp_path))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_a_run_killed_while_writing_does_not_train_again(root, finished, tmp_path, monkeypatch):
    def dies(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(train_encoder, "write_json", dies)
        with pytest.raises(RuntimeError, match="killed"):
            run(root, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert not (tmp_path / "manifest.json").exists()
    monkeypatch.setattr(EncoderModule, "training_step", dies)
    manifest = run(root, tmp_path)
    wanted = read_manifest(finished)
    assert manifest.selection == wanted.selection
    assert manifest.outputs["model.safetensors"] == wanted.outputs["model.safetensors"]


def test_ridge_is_an_encoder_too(root, tmp_path):
    manifest = run(root, tmp_path, "encoder.name=ridge", "data.repetitions=each", "baseline_ridge=false")
    assert manifest.selection["closed_form"]
    assert manifest.metrics["val/retrieval_top1_4way"] > 0.5
    assert "baseline_ridge.safetensors" not in manifest.outputs
    rows = load_embeds(tmp_path / "embeds" / "train.safetensors")
    assert len(rows["eeg_embeds"]) == 96  # two repetitions, each by itself
    assert set(rows["repetition"].tolist()) == {0, 1}
    with torch.inference_mode():
        assert eegrecon.load(tmp_path)(torch.zeros(2, 63, 250), torch.ones(2, dtype=torch.long)).shape == (2, 256)


def test_ridge_on_bins_is_rebuilt_from_what_is_saved(root, tmp_path):
    words = ("encoder={name: ridge, args: {samples_per_bin: 8}}", "baseline_samples_per_bin=4")
    manifest = run(root, tmp_path / "encoder", *words)
    assert manifest.selection["ridge_samples_per_bin"] == 4
    assert min(manifest.metrics[f"val/retrieval_top1_4way{suffix}"] for suffix in ("", "_ridge")) > 0.5
    data = train_encoder.build_data(config(root, *words))
    batch = data.averaged("val")
    bins = [batch["eeg"].double().numpy()[:, :, at : at + 4].mean(2) for at in range(0, 250, 4)]  # the last: 2 samples
    state = load_file(tmp_path / "encoder" / "baseline_ridge.safetensors")
    weight, bias = (state[f"linear.{name}"].double().numpy() for name in ("weight", "bias"))
    expected = np.stack(bins, axis=2).reshape(16, 63 * 63) @ weight.T + bias
    with torch.inference_mode():
        baseline = load_ridge(tmp_path / "encoder", data)(batch["eeg"], batch["subject"])
        network = eegrecon.load(tmp_path / "encoder")
        embeds = network(batch["eeg"], batch["subject"])
    np.testing.assert_allclose(baseline.numpy(), expected, atol=1e-4)
    assert network.encoder.linear.in_features == 63 * 32
    rows = load_embeds(tmp_path / "encoder" / "embeds" / "val.safetensors")
    np.testing.assert_allclose(rows["eeg_embeds"], embeds.numpy(), atol=1e-4)

    save_file({name: state[name] for name in ("linear.weight", "linear.bias")}, tmp_path / "baseline_ridge.safetensors")
    with pytest.raises(ArtifactError, match=r"does not hold samples_per_bin.*train-encoder --overwrite"):
        load_ridge(tmp_path, data)


def test_a_baseline_that_will_not_fit_is_refused_before_anything_is_trained(root, finished, tmp_path, monkeypatch):
    def trains(*_):
        raise AssertionError("trained")

    before = (finished / "manifest.json").read_bytes()
    monkeypatch.setattr(EncoderModule, "training_step", trains)
    monkeypatch.setattr(ridge_memory, "free_bytes", lambda device: 1000)
    words = (
        r"The linear baseline \(baseline_ridge\) does not fit into memory: ridge on 48 training rows x 15,750 features "
        r"\(63 channels x 250 values\) takes about 0\.\d GB, but 0\.0 GB are free; .*baseline_ridge=false"
    )
    for directory, more in ((tmp_path / "encoder", {}), (finished, {"overwrite": True})):
        with pytest.raises(ConfigError, match=words):
            run(root, directory, **more)
    assert not (tmp_path / "encoder").exists()
    assert (finished / "manifest.json").read_bytes() == before
    assert run(root, finished).selection == read_manifest(finished).selection  # finished: nothing is fitted
    with pytest.raises(AssertionError, match="trained"):
        run(root, tmp_path / "encoder", "baseline_ridge=false")
    monkeypatch.setattr(ridge_memory, "free_bytes", lambda device: 10**9)
    with pytest.raises(AssertionError, match="trained"):
        run(root, tmp_path / "another")


def test_permuted_labels_are_recorded_and_change_the_fit(root, finished, tmp_path):
    manifest = run(root, tmp_path, "encoder.name=ridge", "permute_labels=true", "baseline_ridge=false")
    assert manifest.data["permute_labels"] is True
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["permuted_labels"] is True
    honest = read_manifest(finished).metrics["val/retrieval_top1_4way_ridge"]
    assert manifest.metrics["val/retrieval_top1_4way"] < honest


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_training_that_stops_before_an_epoch_is_over_is_one_sentence(root, tmp_path):
    with pytest.raises(ConfigError, match="stopped before an epoch was over and validated"):
        run(root, tmp_path / "encoder", "trainer.max_steps=1", "baseline_ridge=false")
    assert not (tmp_path / "encoder" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["select.monitor=val/retrieval_top1_60way"], "retrieval_top1_4way"),
        (["select.mode=min"], "worst"),
        (["trainer.fast_dev_run=true"], "fast_dev_run"),
        (["latent_target.name=''"], "latent_target.name is empty"),
        (["optim.args.lrr=1"], "lrr"),
        (["data.split.val_concepts=1"], "at least 2 concepts"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(root, tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=words):
        run(root, tmp_path / "encoder", *overrides)
    assert not (tmp_path / "encoder").exists()
