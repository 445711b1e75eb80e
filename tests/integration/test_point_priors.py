"""Stage 2 without diffusion: mlp, ridge and none leave what a diffusion prior leaves, and are called alike."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

import eegrecon
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.data import ImageSet, TargetStore, target_dir
from eegrecon.diffusion.samplers import row_generators
from eegrecon.errors import ConfigError
from eegrecon.models.encoders.ridge import ALPHAS
from tests.builders import DIM, build_tiny_set
from tests.integration.test_train_prior import build_encoder, go

pytestmark = pytest.mark.usefixtures("clean_rank")
NETWORK = "prior={name: mlp, args: {hidden: [64], dropout: 0.0}}"
MLP = (NETWORK, "trainer.max_epochs=20", "trainer.check_val_every_n_epoch=5")
OPTIONS = {"mlp": MLP, "ridge": ("prior.name=ridge",), "none": ("prior.name=none",)}
SCORES = {
    f"val/{name}"
    for name in ("prior_loss", "prior_cosine", "prior_cosine_shuffled", "prior_norm_ratio", "embed_cosine",
                 "prior_retrieval_top1_4way", "embed_retrieval_top1_4way")
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_tiny_set(home / "data")
    build_encoder(home / "data", home / "run")
    return home


@pytest.fixture(scope="module")
def priors(home):
    """A finished directory of each."""
    found = {}
    for name, overrides in OPTIONS.items():
        run = home / name
        shutil.copytree(home / "run" / "encoder", run / "encoder")
        go(home, run / "prior", *overrides)
        found[name] = run / "prior"
    return found


def rows(home, part):
    """EEG and image embeddings as numpy arrays, from the files."""
    arrays = load_embeds(home / "run" / "encoder" / "embeds" / f"{part}.safetensors")
    root = home / "data" / "pocket"
    store = TargetStore(target_dir(root, "clip-pocket"), ImageSet.from_root(root))
    return arrays["eeg_embeds"].astype(float), store.rows(arrays["image_index"]).astype(float)


def cosine(a, b):
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


@pytest.mark.parametrize("name", OPTIONS)
def test_the_directory_is_that_of_a_prior(priors, name):
    manifest = read_manifest(priors[name])
    assert set(manifest.outputs) == {"model.safetensors", "metrics.json", "embeds/val.safetensors", "config.yaml"}
    assert manifest.stage == "train-prior"
    payload = json.loads((priors[name] / "metrics.json").read_text())
    assert set(payload["metrics"]) == SCORES
    assert payload["protocol"]["prior"] == name
    assert payload["metrics"]["val/prior_cosine"]["value"] > payload["metrics"]["val/prior_cosine_shuffled"]["value"]
    state = load_file(priors[name] / "model.safetensors")
    assert {"target_mean", "target_scale", "cond_mean", "cond_scale", "cond_unit"} <= set(state)
    assert not (priors[name] / "checkpoints").exists()


@pytest.mark.parametrize("name", OPTIONS)
def test_it_loads_and_is_called_like_a_diffusion_prior(priors, name):
    prior = eegrecon.load(priors[name])
    kept = load_embeds(priors[name] / "embeds" / "val.safetensors")
    eeg_embeds = torch.from_numpy(kept["eeg_embeds"])
    sampled = prior.sample(
        eeg_embeds,
        generators=row_generators(0, kept["subject"].tolist(), kept["image_index"].tolist()),
        guidance_scale=3.0,
        num_inference_steps=5,
    )
    assert sampled.shape == (12, DIM)
    np.testing.assert_allclose(sampled.numpy(), kept["pred_image_embeds"], atol=1e-4)
    one = prior.sample(eeg_embeds[3:4], generators=row_generators(9, [1]), guidance_scale=1.0, num_inference_steps=50)
    np.testing.assert_allclose(one.numpy(), sampled[3:4].numpy(), atol=1e-4)


def test_none_passes_the_embedding_unchanged(priors):
    kept = load_embeds(priors["none"] / "embeds" / "val.safetensors")
    assert np.array_equal(kept["pred_image_embeds"], kept["eeg_embeds"])
    metrics = read_manifest(priors["none"]).metrics
    assert metrics["val/prior_cosine"] == metrics["val/embed_cosine"]
    assert metrics["val/prior_retrieval_top1_4way"] == metrics["val/embed_retrieval_top1_4way"]


def test_ridge_is_sklearns_with_the_penalty_of_the_best_validation_cosine(home, priors):
    (train_x, train_y), (val_x, val_y) = rows(home, "train"), rows(home, "val")
    train_x, val_x = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train_x, val_x))
    mean, std = train_x.mean(0), train_x.std(0, ddof=1)
    x, held_out = (train_x - mean) / std, (val_x - mean) / std
    y = (train_y - train_y.mean(0)) / train_y.std(0, ddof=1)
    centred = x - x.mean(0)
    # The penalty's unit: the mean diagonal of the Gram matrix of the smaller side (here the rows').
    unit = np.square(centred).sum() / min(x.shape)
    predictions = {
        alpha: Ridge(alpha=alpha * unit).fit(x, y).predict(held_out) * train_y.std(0, ddof=1) + train_y.mean(0)
        for alpha in ALPHAS
    }
    scores = {alpha: cosine(value, val_y) for alpha, value in predictions.items()}
    manifest = read_manifest(priors["ridge"])
    found = {float(alpha): value for alpha, value in manifest.selection["scores"].items()}
    assert found == pytest.approx(scores, abs=1e-3)
    best = max(scores, key=scores.__getitem__)
    assert manifest.selection["alpha"] == best
    assert manifest.selection["value"] == pytest.approx(manifest.metrics["val/prior_cosine"], abs=1e-5)
    kept = load_embeds(priors["ridge"] / "embeds" / "val.safetensors")
    np.testing.assert_allclose(kept["pred_image_embeds"], predictions[best], atol=0.02)


def test_mlp_is_trained_selected_and_better_than_its_first_epoch(home, priors, tmp_path):
    manifest = read_manifest(priors["mlp"])
    assert manifest.selection["monitor"] == "val/prior_cosine"
    assert manifest.selection["value"] == pytest.approx(manifest.metrics["val/prior_cosine"], abs=1e-5)
    shutil.copytree(home / "run" / "encoder", tmp_path / "encoder")
    brief = go(home, tmp_path / "prior", NETWORK, "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1")
    assert manifest.metrics["val/prior_cosine"] > brief.metrics["val/prior_cosine"] + 0.05


@pytest.mark.parametrize("name", OPTIONS)
def test_a_second_call_is_up_to_date(home, priors, name):
    before = (priors[name] / "manifest.json").read_bytes()
    go(home, priors[name], *OPTIONS[name])
    assert (priors[name] / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("prior.name=ridge", "diffusion.ema_decay=0.9"), "ema_decay is 0.9, but the prior ridge is a closed form"),
        (("prior.name=ridge", "regression.cosine=1"), "regression.cosine is 1.0, but the prior ridge"),
        (("prior.name=ridge", "select.monitor=val/prior_loss", "select.mode=min"), "penalty by val/prior_cosine"),
        (("prior.name=none", "diffusion.cond_noise=0.1"), "the prior none is no network that is trained"),
        (("prior.name=mlp", "regression.mse=0"), "both 0, so nothing would be learned"),
        (("regression.cosine=1",), "the prior unet is trained by diffusion"),
        (("prior={name: mlp, args: {hiden: [8]}}",), "'hiden' is not an argument"),
        (("prior={name: ridge, args: {alphas: [-1]}}",), "positive alphas"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(home, tmp_path, overrides, words):
    shutil.copytree(home / "run" / "encoder", tmp_path / "encoder")
    with pytest.raises(ConfigError, match=words):
        go(home, tmp_path / "prior", *overrides)
    assert not (tmp_path / "prior" / "manifest.json").exists()
