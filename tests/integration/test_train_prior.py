"""Stage 2 from a finished encoder directory to weights, validation samples and scores, on the tiny set."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eegrecon.loading as loading
from eegrecon.artifacts import load_embeds, new_manifest, read_manifest, save_embeds, write_manifest
from eegrecon.config import load
from eegrecon.data import ImageSet, TargetStore, target_dir, trial_dir
from eegrecon.datamodule import ThingsDataModule
from eegrecon.diffusion.samplers import row_generators
from eegrecon.errors import ArtifactError, ConfigError, DataError
from eegrecon.modules.prior import PriorModule
from eegrecon.stages import train_prior
from tests.builders import DIM, build_tiny_set

pytestmark = pytest.mark.usefixtures("clean_rank")
EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "pocket" / "prior.yaml"
OVERRIDES = (
    "data.repetitions=average",
    "data.split.val_concepts=4",
    "prior.args={hidden: [64, 32], time_embed_dim: 16}",
    "sample.num_inference_steps=5",
    "loader.batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=4",
    "trainer.check_val_every_n_epoch=2",
    "trainer.enable_progress_bar=false",
)


def build_encoder(root, run, *, l2_normalise=False):
    """A finished `encoder/` whose embeddings are the pictures' own, blurred."""
    set_root = root / "pocket"
    store = TargetStore(target_dir(set_root, "clip-pocket"), ImageSet.from_root(set_root), l2_normalise=l2_normalise)
    data = ThingsDataModule(
        stage="encoder", images_root=set_root, trial_dirs=[trial_dir(set_root, 1)], target_dirs={"image": store.path},
        val_concepts=4, repetitions="average",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        index = getattr(data.split, part)
        rows = store.rows(index)
        eeg_embeds = rows + 0.3 * rows.std() * rng.standard_normal(rows.shape)
        ones = np.ones(len(index))
        save_embeds(run / "encoder" / "embeds" / f"{part}.safetensors", eeg_embeds, index, ones, -ones)
    outputs = {name: {} for name in ("embeds/train.safetensors", "embeds/val.safetensors")}
    manifest = new_manifest(
        "train-encoder", command="test", config_hash="0" * 64, seed=0, data=data.describe(),
        interface={**store.interface(), "latent_shape": [4, 16, 16]}, outputs=outputs,
    )  # fmt: skip
    write_manifest(run / "encoder", manifest)
    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_tiny_set(home / "data")
    build_encoder(home / "data", home / "run")
    for path in (home / "data" / "pocket").rglob("test*.npy"):
        path.unlink()  # stage 2 must never need them
    return home


@pytest.fixture
def run_dir(home, tmp_path):
    shutil.copytree(home / "run" / "encoder", tmp_path / "encoder")
    return tmp_path


def config(home, *overrides):
    return load("train-prior", file=EXPERIMENT, overrides=[f"data.root={home / 'data'}", *OVERRIDES, *overrides])


def go(home, directory, *overrides, **keywords):
    return train_prior.run(config(home, *overrides), directory=directory, command="test", **keywords)


@pytest.fixture(scope="module")
def done(home):
    go(home, home / "run" / "prior")
    return home / "run" / "prior"


def test_everything_is_there(done):
    manifest = read_manifest(done)
    assert set(manifest.outputs) == {"model.safetensors", "metrics.json", "embeds/val.safetensors", "config.yaml"}
    encoder = read_manifest(done.parent / "encoder")
    assert manifest.interface.items() < encoder.interface.items()
    assert manifest.data["split"]["val_concepts"] == 4
    assert set(manifest.inputs) == {"encoder", "targets"}
    assert manifest.selection["monitor"] == "val/prior_cosine"
    assert manifest.selection["epoch"] in (1, 3)
    assert list((done / "tensorboard").glob("events*"))
    assert not (done / "checkpoints").exists()
    assert not (done / "started.json").exists()


def test_scores_have_their_names_and_belong_to_the_selected_epoch(done):
    manifest = read_manifest(done)
    metrics = json.loads((done / "metrics.json").read_text())["metrics"]
    assert set(metrics) == {
        f"val/{name}"
        for name in ("prior_loss", "prior_cosine", "prior_cosine_shuffled", "prior_norm_ratio", "embed_cosine",
                     "prior_retrieval_top1_4way", "embed_retrieval_top1_4way")
    }  # fmt: skip
    assert {name: entry["value"] for name, entry in metrics.items()} == manifest.metrics
    assert metrics["val/prior_cosine"]["value"] == pytest.approx(manifest.selection["value"], abs=1e-5)
    assert metrics["val/embed_cosine"]["value"] > 0.9


def test_weights_sample_what_the_stage_exported(done):
    prior = loading.load(done)
    rows = load_embeds(done / "embeds" / "val.safetensors")
    cfg = json.loads((done / "metrics.json").read_text())["protocol"]
    sampled = prior.sample(
        torch.from_numpy(rows["eeg_embeds"]),
        generators=row_generators(cfg["seed"], rows["subject"].tolist(), rows["image_index"].tolist()),
        guidance_scale=cfg["guidance_scale"],
        num_inference_steps=cfg["num_inference_steps"],
    )
    assert rows["pred_image_embeds"].shape == (12, DIM)
    assert rows["repetition"].tolist() == [-1] * 12
    assert np.allclose(sampled.numpy(), rows["pred_image_embeds"], atol=1e-4)
    assert set(load_file(done / "model.safetensors")) >= {"target_mean", "target_scale", "cond_mean", "cond_scale"}


def test_another_scheduler_samples_validation_and_comes_back_with_the_weights(home, done, run_dir):
    """The same training, so the same weights; other samples, and the same loss, whose noise is drawn apart."""
    scheduler = "sample.scheduler={name: dpm_solver_multistep, args: {algorithm_type: sde-dpmsolver++}}"
    manifest = go(home, run_dir / "prior", scheduler, "select={monitor: val/prior_loss, mode: min}")
    usual = go(home, run_dir / "prior", "select={monitor: val/prior_loss, mode: min}", overwrite=True)
    assert manifest.metrics["val/prior_loss"] == usual.metrics["val/prior_loss"]
    assert manifest.metrics["val/prior_cosine"] != usual.metrics["val/prior_cosine"]
    go(home, run_dir / "prior", scheduler, overwrite=True)
    prior = loading.load(run_dir / "prior")
    assert prior.solver.scheduler.config.algorithm_type == "sde-dpmsolver++"
    rows = load_embeds(run_dir / "prior" / "embeds" / "val.safetensors")
    protocol = json.loads((run_dir / "prior" / "metrics.json").read_text())["protocol"]
    assert protocol["scheduler"] == {"name": "dpm_solver_multistep", "args": {"algorithm_type": "sde-dpmsolver++"}}
    sampled = prior.sample(
        torch.from_numpy(rows["eeg_embeds"]),
        generators=row_generators(0, rows["subject"].tolist(), rows["image_index"].tolist()),
        guidance_scale=protocol["guidance_scale"],
        num_inference_steps=protocol["num_inference_steps"],
    )
    assert np.allclose(sampled.numpy(), rows["pred_image_embeds"], atol=1e-4)


def test_clipping_is_kept_with_the_weights_and_shortens_the_samples(home, done, run_dir):
    assert loading.load(done).solver.scheduler.config.clip_sample is False
    clipped = go(home, run_dir / "prior", "diffusion.clip_sample=true")
    prior = loading.load(run_dir / "prior")
    assert prior.scheduler.config.clip_sample is True
    assert prior.solver.scheduler.config.clip_sample is True
    rows = load_embeds(run_dir / "prior" / "embeds" / "val.safetensors")
    standardised = prior.standardise_target(torch.from_numpy(rows["pred_image_embeds"]))
    assert standardised.abs().max() < 1.0001  # the last step returns the clamped estimate itself
    usual = torch.from_numpy(load_embeds(done / "embeds" / "val.safetensors")["pred_image_embeds"])
    assert prior.standardise_target(usual).abs().max() > 1.5
    assert clipped.metrics["val/prior_norm_ratio"] < read_manifest(done).metrics["val/prior_norm_ratio"]


def test_pictures_without_eeg_are_read_from_another_set_and_change_the_training(home, done, run_dir):
    build_tiny_set(home / "data", seed=1, train_concepts=20, set_name="other")
    manifest = go(home, run_dir / "prior", "diffusion.image_only=other/clip-pocket", "diffusion.image_only_rate=0.5")
    assert manifest.inputs["image_only"]["path"].endswith("other/targets/clip-pocket")
    one, two = (load_file(path / "model.safetensors") for path in (done, run_dir / "prior"))
    assert torch.equal(one["target_scale"], two["target_scale"])
    assert not torch.equal(one["network.output.weight"], two["network.output.weight"])
    with pytest.raises(ArtifactError, match=r"image_only .*vae-pocket holds other embeddings .*model is 'sdxl_vae'"):
        go(home, run_dir / "other", "diffusion.image_only=vae-pocket")
    with pytest.raises(ConfigError, match="image_only_rate is 0"):
        go(home, run_dir / "other", "diffusion={image_only: clip-pocket, image_only_rate: 0}")
    with pytest.raises(ConfigError, match="the prior mlp has no unconditional half"):
        go(home, run_dir / "other", "diffusion.image_only=clip-pocket", "prior.name=mlp")
    with pytest.raises(DataError, match="absent"):
        go(home, run_dir / "other", "diffusion.image_only=absent/clip-pocket")
    assert not (run_dir / "other").exists()


def test_second_time_is_up_to_date_and_another_config_is_refused(home, done):
    before = (done / "manifest.json").read_bytes()
    go(home, done)
    assert (done / "manifest.json").read_bytes() == before
    with pytest.raises(ArtifactError, match=r"diffusion\.cond_drop.*RUN=.*--overwrite"):
        go(home, done, "diffusion.cond_drop=0.5")


def test_killed_run_leaves_no_manifest_and_resumes_to_the_same_weights(home, done, run_dir, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(PriorModule, "on_train_epoch_end", kill_in_epoch(2), raising=False)
        with pytest.raises(RuntimeError, match="killed"):
            go(home, run_dir / "prior")
    assert not (run_dir / "prior" / "manifest.json").exists()
    assert not (run_dir / "prior" / "model.safetensors").exists()
    assert (run_dir / "prior" / "checkpoints" / "last.ckpt").is_file()
    go(home, run_dir / "prior")
    resumed, whole = (load_file(path / "model.safetensors") for path in (run_dir / "prior", done))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert read_manifest(run_dir / "prior").selection == read_manifest(done).selection


def kill_in_epoch(epoch):
    def hook(module):
        if module.current_epoch == epoch:
            raise RuntimeError("killed")

    return hook


def test_encoder_of_another_target_space_is_refused_without_torch(home, run_dir):
    """In a process of its own, to see what was imported."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom eegrecon.config import load\n"
        "from eegrecon.errors import ArtifactError\nfrom eegrecon.stages import train_prior\n"
        "cfg = load('train-prior', file=Path(sys.argv[1]), overrides=sys.argv[3:])\n"
        "try:\n    train_prior.run(cfg, directory=Path(sys.argv[2]), command='test')\n"
        "except ArtifactError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
    )
    overrides = [f"data.root={home / 'data'}", *OVERRIDES, "target.l2_normalise=true"]
    done = subprocess.run(
        [sys.executable, "-c", script, str(EXPERIMENT), str(run_dir / "prior"), *overrides],
        capture_output=True, text=True, check=False, cwd=EXPERIMENT.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("normalised is False there and True here", "encoder/manifest.json", "clip-pocket/header.json",
                 "target.l2_normalise=true", "eegrecon train-encoder"):  # fmt: skip
        assert part in done.stdout
    assert not (run_dir / "prior").exists()


def test_bad_input_is_one_sentence_and_nothing_is_written(home, run_dir):
    prior = run_dir / "prior"
    with pytest.raises(ArtifactError, match=r"eegrecon train-encoder"):
        go(home, run_dir / "elsewhere" / "prior")
    with pytest.raises(ArtifactError, match=r"differ in data\.split"):
        go(home, prior, "data.split.val_concepts=3")
    with pytest.raises(ArtifactError, match=r"differ in data\.repetitions"):
        go(home, prior, "data.repetitions=each")
    with pytest.raises(ConfigError, match=r"'hiden' is not an argument .*hidden"):
        go(home, prior, "prior.args={hiden: [8, 8]}")
    with pytest.raises(ConfigError, match=r"PriorUNet needs at least two"):
        go(home, prior, "prior.args={hidden: [8]}")
    with pytest.raises(ConfigError, match="divides its error"):
        go(home, prior, "diffusion={prediction_type: epsilon, beta_schedule: squaredcos_cap_v2}")
    with pytest.raises(ConfigError, match=r"sample\.scheduler 'ddim' does not fit: 'etta' is not an argument"):
        go(home, prior, "sample.scheduler={name: ddim, args: {etta: 1}}")
    with pytest.raises(ConfigError, match=r"cannot clip, but diffusion\.clip_sample is true: choose ddpm or ddim"):
        go(home, prior, "sample.scheduler.name=unipc_multistep", "diffusion.clip_sample=true")
    with pytest.raises(ConfigError, match=r"'euler_ancestral_discrete' .* cannot make 5 steps"):
        go(home, prior, "sample.scheduler.name=euler_ancestral_discrete")
    with pytest.raises(ConfigError, match=r"'sample\.scheduler\.name' is 'dpm', which is not known"):
        go(home, prior, "sample.scheduler.name=dpm")
    with pytest.raises(ConfigError, match="trainer block"):
        go(home, prior, "trainer.max_epoch=3")
    with pytest.raises(ConfigError, match=r"monitor.*prior_retrieval_top1_4way.*fast_dev_run"):
        go(home, prior, "select.monitor=val/loss", "trainer.fast_dev_run=true")
    with pytest.raises(ConfigError, match="select the worst"):
        go(home, prior, "select.mode=min")
    with pytest.raises(ConfigError, match="at least one epoch"):
        go(home, prior, "trainer.check_val_every_n_epoch=5")
    with pytest.raises(ConfigError, match=r"trainer\.precision is 'bf16-true', but a prior keeps float32 weights"):
        go(home, prior, "trainer.precision=bf16-true")
    with pytest.raises(ConfigError, match=r"The trainer block of the train-prior config does not fit: .*devices"):
        go(home, prior, "trainer.devices=0")
    with pytest.raises(ConfigError, match=r"The trainer block of the train-prior config does not fit: .*'foo'"):
        go(home, prior, "trainer.accelerator=foo")
    with (run_dir / "encoder" / "embeds" / "train.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"train\.safetensors is not the file its manifest describes"):
        go(home, prior)
    assert not prior.exists()


@pytest.mark.parametrize(
    "stop", ["trainer.limit_train_batches=0", "trainer.max_steps=1", "trainer.max_time='00:00:00:00'"]
)
def test_training_that_stops_before_an_epoch_is_over_is_one_sentence(home, run_dir, stop):
    with pytest.raises(ConfigError, match="stopped before an epoch was over and validated"):
        go(home, run_dir / "prior", stop)
    assert not (run_dir / "prior" / "manifest.json").exists()


@pytest.mark.ddp
def test_two_processes_train_what_one_does(home, done, run_dir):
    words = [sys.executable, "-m", "eegrecon", "train-prior", "--config", str(EXPERIMENT), "--run", str(run_dir),
             f"data.root={home / 'data'}", *OVERRIDES]  # fmt: skip
    dropless = "prior.args={hidden: [64, 32], time_embed_dim: 16, dropout: 0.0}"
    other = shutil.copytree(run_dir, run_dir.parent / f"{run_dir.name}-ddp")
    words[words.index(str(run_dir))] = str(other)
    ran = subprocess.run(
        [*words, dropless, "trainer.devices=2", "trainer.strategy=ddp"],
        capture_output=True, text=True, check=False, cwd=EXPERIMENT.parents[2], timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    go(home, run_dir / "prior", dropless)
    one, two = (load_file(path / "prior" / "model.safetensors") for path in (run_dir, other))
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    assert read_manifest(other / "prior").world_size == 2
    first, second = (read_manifest(path / "prior").metrics for path in (run_dir, other))
    assert first == pytest.approx(second, abs=1e-4)
