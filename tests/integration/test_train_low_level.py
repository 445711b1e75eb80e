"""The low-level pathway from stores to manifest on a tiny set without test files, and its latents for others."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eegrecon
from eegrecon.artifacts import read_manifest, sha256_file
from eegrecon.config import load
from eegrecon.data import ImageSet, TargetStoreWriter, target_dir
from eegrecon.errors import ArtifactError, ConfigError, DataError
from eegrecon.metrics.functional.latents import latent_scores
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.models.generators.latents import load_vae
from eegrecon.modules.low_level import LowLevelModule
from eegrecon.pathways.low_level import check_latents, open_latents, predicted_latents
from eegrecon.stages import train_encoder, train_low_level
from eegrecon.stages.low_level_build import build_data
from eegrecon.stages.low_level_scores import picture_scores
from tests.builders import build_tiny_set, write_store_manifest
from tests.builders_sdxl import tiny_sdxl
from tests.contract.test_no_test_data import hide_test_files

pytestmark = [pytest.mark.usefixtures("clean_rank"), pytest.mark.filterwarnings("ignore:.*does not have many workers")]
TRAINER = "trainer={accelerator: cpu, devices: 1, max_epochs: 3, enable_progress_bar: false, num_sanity_val_steps: 0}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    hide_test_files(build_tiny_set(root, train_concepts=16, exemplars=4))
    return root


def config(root, *overrides, verb="train-low-level", exp="pocket"):
    small = ["data.split.val_concepts=4", "loader.batch_size=16"]
    small += ["vae=''"] if verb == "train-low-level" else []
    return load(verb, exp, None, [f"data.root={root}", *small, TRAINER, *overrides])


def run(root, directory, *overrides, **keywords):
    return train_low_level.run(config(root, *overrides), directory=directory, command="test", **keywords)


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "low_level"
    run(root, directory)
    return directory


def test_everything_is_written_and_agrees(root, finished):
    manifest = read_manifest(finished)
    assert set(manifest.outputs) == {"model.safetensors", "latents/val.safetensors", "metrics.json", "config.yaml"}
    assert not (finished / "checkpoints").exists()
    assert list((finished / "tensorboard").glob("events*"))
    assert set(manifest.inputs) == {"trials/sub-01", "targets/vae-pocket"}
    assert manifest.selection["monitor"] == "val/latent_skill"
    assert manifest.interface == {
        "name": "vae-pocket", "model": "sdxl_vae", "weights_tag": "tiny", "weights_sha256": "0" * 64,
        "layer": "latent", "transform": "none", "scaling_factor": 0.5, "shape": [4, 16, 16],
    }  # fmt: skip
    assert manifest.metrics["n_parameters"] > 1e6
    assert manifest.metrics["train/trials_per_second"] > 0
    data = build_data(config(root))
    val, train = data.averaged("val"), data.averaged("train")
    mean = train["targets"]["vae_latent"].mean(0)
    rows = load_file(finished / "latents" / "val.safetensors")
    assert rows["image_index"].tolist() == val["image_index"].tolist()
    scores = latent_scores(rows["latents"], val["targets"]["vae_latent"], mean)
    metrics = json.loads((finished / "metrics.json").read_text())["metrics"]
    for name, value in scores.items():
        assert metrics[f"val/{name}"]["value"] == pytest.approx(value, rel=1e-4), name
    assert manifest.selection["value"] == pytest.approx(scores["latent_skill"], abs=1e-5)
    network = eegrecon.load(finished)
    torch.testing.assert_close(network.latent_mean, mean)
    deviation = (train["targets"]["vae_latent"] - mean).double().square().mean((0, 2, 3)).sqrt().float()
    torch.testing.assert_close(network.latent_std.flatten(), deviation)
    with torch.inference_mode():
        torch.testing.assert_close(network(val["eeg"], val["subject"]), rows["latents"], atol=1e-4, rtol=1e-4)
    found = predicted_latents(finished.parent, "low_level", val["eeg"], val["subject"])
    torch.testing.assert_close(found, rows["latents"], atol=1e-4, rtol=1e-4)


def test_the_curves_are_in_tensorboard(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}_epoch" for name in ("loss", "l1", "mse")} <= tags
    assert {f"val/latent_{name}" for name in ("skill", "mse", "l1", "correlation", "two_way", "std_ratio")} <= tags


def test_a_second_call_is_up_to_date_and_another_config_is_refused(root, finished):
    before = (finished / "manifest.json").stat().st_mtime_ns
    run(root, finished)
    assert (finished / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match=r"loss\.l1.*RUN=.*--overwrite"):
        run(root, finished, "loss.l1=1")


def test_a_killed_run_continues_as_if_it_had_not_been(root, finished, tmp_path, monkeypatch):
    step = LowLevelModule.training_step

    def dies(self, batch, batch_idx):
        if self.current_epoch == 2 and batch_idx == 1:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LowLevelModule, "training_step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            run(root, tmp_path / "low_level")
    assert not (tmp_path / "low_level" / "manifest.json").exists()
    run(root, tmp_path / "low_level")
    resumed, whole = (load_file(path / "model.safetensors") for path in (tmp_path / "low_level", finished))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_ridge_is_fitted_and_learns_what_is_linear(root, tmp_path):
    manifest = run(root, tmp_path / "low_level", "network.name=ridge")
    assert manifest.selection["closed_form"]
    assert manifest.metrics["val/latent_skill"] == pytest.approx(manifest.selection["value"], abs=1e-4)
    assert manifest.metrics["val/latent_skill"] > 0.2  # the tiny set's EEG is linear in the latents
    assert manifest.metrics["val/latent_two_way"] > 0.7
    permuted = config(root, "network.name=ridge", exp="pocket_permuted")
    control = train_low_level.run(permuted, directory=tmp_path / "control", command="test")
    assert control.metrics["val/latent_skill"] < 0.1
    assert json.loads((tmp_path / "control" / "metrics.json").read_text())["protocol"]["permuted_labels"]


def test_options_change_what_is_trained(root, finished, tmp_path):
    base = load_file(finished / "model.safetensors")
    for number, words in enumerate(
        (["loss.l1=1", "loss.mse=0"], ["ema_decay=0.9"], ["augment.noise=0.5"], ["target_scale=none"])
    ):
        manifest = run(root, tmp_path / str(number), *words)
        other = load_file(tmp_path / str(number) / "model.safetensors")
        assert not torch.equal(base["network.spatial.weight"], other["network.spatial.weight"]), words
        assert manifest.selection["ema"] == (words == ["ema_decay=0.9"])
    loaded = eegrecon.load(tmp_path / "3")
    assert not loaded.standardise


def test_matched_variances_are_those_of_the_validation_latents(root, tmp_path):
    manifest = run(root, tmp_path, "match_variance=true", "network.name=ridge")
    assert manifest.metrics["val/latent_std_ratio"] == pytest.approx(1, abs=0.1)
    val = build_data(config(root)).averaged("val")
    network = eegrecon.load(tmp_path)
    assert (network.gain != 1).all()
    with torch.inference_mode():
        pred = network(val["eeg"], val["subject"]) - network.latent_mean
    true = val["targets"]["vae_latent"] - network.latent_mean
    torch.testing.assert_close(pred.square().mean((0, 2, 3)), true.square().mean((0, 2, 3)), rtol=1e-3, atol=1e-3)


def test_the_papers_experiment_trains_its_network(tmp_path):
    hide_test_files(build_tiny_set(tmp_path / "data", train_concepts=16, exemplars=4, set_name="things_eeg2"))
    small = ["network.args={features: 4, width: 4, narrow: 4}", "data.subjects=[1]", "latent_target.name=vae-pocket"]
    cfg = config(tmp_path / "data", *small, exp="things_eeg2/atm_s")
    assert (cfg.network.name, cfg.loss.l1, cfg.loss.mse, cfg.target_scale) == ("upsampling", 1.0, 0.0, "none")
    manifest = train_low_level.run(cfg, directory=tmp_path / "low_level", command="test")
    assert manifest.outputs["latents/val.safetensors"]["shape"]["latents"] == [16, 4, 16, 16]
    assert manifest.data["repetitions"] == "each"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.mse=0"], "loss.l1, loss.mse and loss.image are all 0"),
        (["loss.image=1"], "loss.image is 1.0, but vae is empty"),
        (["select.monitor=val/prior_cosine"], "expected one of val/latent_skill, "),
        (["select.mode=min"], "would select the worst val/latent_skill"),
        (["loader.batch_size=1"], "needs at least 2 rows"),
        (["trainer.limit_val_batches=2"], "trainer.limit_val_batches is 2, but train-low-level needs 1.0"),
        (["trainer.logger=false"], "trainer.logger is set by the stage"),
        (["data.split.val_concepts=1"], "selected on at least 2 concepts"),
        (["network.name=ridge", "loss.l1=1"], "ridge minimises the mse alone"),
        (["network.name=ridge", "ema_decay=0.9"], "ema_decay is set, but the network ridge is a closed form"),
        (["network.name=ridge", "select={monitor: val/latent_mse, mode: min}"], "chooses its penalty by val/latent_sk"),
        (["latent_target.name=clip-pocket"], "a store of kind 'image' .* name a store of kind 'vae_latent'"),
        (["network.args.depth=3"], "'depth' is not an argument"),
    ],
)
def test_bad_configs_are_one_sentence_and_nothing_is_trained(root, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        run(root, tmp_path / "low_level", *words)
    assert not (tmp_path / "low_level" / "model.safetensors").exists()


def test_an_absent_target_names_the_command(root, tmp_path):
    with pytest.raises(DataError, match=r"vae-other.*extract-targets"):
        run(root, tmp_path, "latent_target.name=vae-other")


@pytest.fixture(scope="module")
def head(root, tmp_path_factory):
    """A run with an encoder that has a latent head."""
    directory = tmp_path_factory.mktemp("head") / "encoder"
    small = ["baseline_ridge=false", "encoder={name: mlp, args: {hidden: [8]}}"]
    train_encoder.run(config(root, *small, verb="train-encoder"), directory=directory, command="test")
    return directory.parent


def test_latents_of_the_encoders_head(root, head):
    source = open_latents(head, "head")
    assert source.interface["shape"] == [4, 16, 16]
    assert source.interface["scaling_factor"] == 0.5
    network = source.network
    assert isinstance(network, AlignedEncoder)
    val = build_data(config(root)).averaged("val")
    with torch.inference_mode():
        wanted = network.latent_head(network(val["eeg"], val["subject"]))
    torch.testing.assert_close(predicted_latents(head, "head", val["eeg"], val["subject"]), wanted)


def test_sources_that_cannot_give_latents(root, finished, head, tmp_path):
    with pytest.raises(ConfigError, match="source of latents is 'prior', expected one of low_level, head"):
        open_latents(finished.parent, "prior")
    with pytest.raises(ArtifactError, match="does not exist"):
        open_latents(finished.parent, "head")
    shutil.copytree(head / "encoder", tmp_path / "old" / "encoder")
    manifest = json.loads((head / "encoder" / "manifest.json").read_text())
    del manifest["interface"]["latent"]
    (tmp_path / "old" / "encoder" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"does not say whose latents its latent head predicts .*train-encoder"):
        open_latents(tmp_path / "old", "head")
    none = ["baseline_ridge=false", "encoder={name: mlp, args: {hidden: [8]}}", "loss.vae_latent=0"]
    train_encoder.run(config(root, *none, verb="train-encoder"), directory=tmp_path / "encoder", command="test")
    with pytest.raises(ArtifactError, match=r"has no latent head: train it with latent_target\.name"):
        open_latents(tmp_path, "head")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A generator's folder with an autoencoder of random weights, and pictures and latents of it in a set."""
    home = tmp_path_factory.mktemp("vae")
    tiny_sdxl(home / "sdxl", dim=256, conditioning={})
    root = build_tiny_set(home / "data", train_concepts=6, exemplars=2)
    images = ImageSet.from_root(root)
    network = load_vae(str(home / "sdxl"), size=16)
    path = target_dir(root, "vae-tiny")
    header = {key: value for key, value in network.header().items() if key != "dim"}
    writer = TargetStoreWriter(path, images, {"kind": "vae_latent", **header}, network.shape)
    for partition, index in (("train", images.train_index), ("test", images.test_index)):
        writer.append(partition, network.encode([images.load(i) for i in index]))
    writer.close()
    write_store_manifest(path, "extract-targets", 0)
    return SimpleNamespace(home=home, base=str(home / "sdxl"), network=network, images=images)


def test_pictures_are_scored_and_the_image_loss_trains(vae, tmp_path):
    words = ["latent_target.name=vae-tiny", "data.split.val_concepts=2", "loader.batch_size=4", f"vae={vae.base}"]
    plain = run(vae.home / "data", tmp_path / "plain", *words)
    names = {
        f"val/{name}{end}" for name in ("pixcorr", "ssim") for end in ("", "_mean_latent", "_shuffled", "_ceiling")
    }
    assert names <= set(plain.metrics)
    image = run(vae.home / "data", tmp_path / "image", *words, "loss.image=5")
    assert image.metrics["val/latent_mse"] != plain.metrics["val/latent_mse"]
    assert not [key for key in load_file(tmp_path / "image" / "model.safetensors") if "vae" in key or "decoder" in key]


def test_a_vae_that_did_not_make_the_latents_is_refused(vae, tmp_path):
    words = ["data.split.val_concepts=2", "loader.batch_size=4", f"vae={vae.base}"]
    with pytest.raises(ArtifactError, match=r"did not make the latents of 'vae-pocket': .*weights_sha256 is 0000"):
        run(vae.home / "data", tmp_path / "low_level", *words)
    assert not (tmp_path / "low_level").exists()


def test_picture_scores_of_the_truth_are_the_ceiling(vae):
    network = vae.network
    seen = [vae.images.load(i) for i in vae.images.train_index]
    true = torch.from_numpy(network.encode(seen))
    mean = true.mean(0)
    perfect = picture_scores(true, true, mean, seen, network, "cpu", seed=0)
    blank = picture_scores(mean.expand_as(true).clone(), true, mean, seen, network, "cpu", seed=0)
    for name in ("val/pixcorr", "val/ssim"):
        assert perfect[name]["value"] == perfect[f"{name}_ceiling"]["value"]
        assert blank[name]["value"] == pytest.approx(blank[f"{name}_mean_latent"]["value"], abs=1e-6)
        assert blank[name]["value"] == pytest.approx(blank[f"{name}_shuffled"]["value"], abs=1e-6)
    with torch.inference_mode():
        decoded = (network.decode(true[:2]).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).flatten(1).numpy()
    shown = [np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR)).ravel() for picture in seen[:2]]
    matrix = [[np.corrcoef(made, true_pixels)[0, 1] for true_pixels in shown] for made in decoded]
    two = picture_scores(true[:2], true[:2], mean, seen[:2], network, "cpu", seed=0)
    assert two["val/pixcorr"]["value"] == pytest.approx((matrix[0][0] + matrix[1][1]) / 2, abs=1e-4)
    assert two["val/pixcorr_shuffled"]["value"] == pytest.approx((matrix[0][1] + matrix[1][0]) / 2, abs=1e-4)
    assert two["val/pixcorr"]["chance"] == two["val/pixcorr_shuffled"]["value"]


def test_latents_of_another_vae_than_the_generators_are_refused(vae):
    generator = SimpleNamespace(vae=vae.network.vae, size=16)
    weights = vae.home / "sdxl" / "vae" / "diffusion_pytorch_model.safetensors"
    fits = {"scaling_factor": vae.network.scaling_factor, "shape": list(vae.network.shape)}
    fits["weights_sha256"] = sha256_file(weights)
    check_latents(fits, "run", generator, vae.base)
    for key, value, message in (
        ("scaling_factor", 0.18215, r"scaling_factor is 0\.18215 there and "),
        ("shape", [4, 64, 64], r"shape is \[4, 64, 64\] there and \[4, "),
        ("weights_sha256", "f" * 64, "weights_sha256 is ffffffffffff… there and "),
    ):
        with pytest.raises(ArtifactError, match=message) as caught:
            check_latents(fits | {key: value}, "run/low_level", generator, vae.base)
        assert str(caught.value).count("; ") == 1  # the one field that differs, then what to do
        assert str(caught.value).startswith("run/low_level predicts other latents than the generator")
