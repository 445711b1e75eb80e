"""Stage 1 with every kind of target and loss, from config to numbers, and what is refused before it begins."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eegrecon
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.config import load
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.modules import target_levels
from eegrecon.modules.encoder import EncoderModule
from eegrecon.stages import evaluate, train_encoder, train_prior
from tests.builders import build_tiny_set
from tests.builders_runs import write_text_store

pytestmark = pytest.mark.usefixtures("clean_rank")
TRAINER = "trainer={accelerator: cpu, devices: 1, max_epochs: 2, enable_progress_bar: false, num_sanity_val_steps: 0}"
SMALL = ("data.split.val_concepts=4", "loader.batch_size=16", "optim.args.lr=0.001", "baseline_ridge=false", TRAINER)
NO_LATENT = ("loss.vae_latent=0", "latent_target.name=''")
FUSED = "fusion_targets=[{name: vae-pocket, l2_normalise: true}]"
LEVELS = "target={name: clip-pocket, levels: [blur-1, blur-2], mixing: %s}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    build_tiny_set(root, train_concepts=16, exemplars=4, subjects=(1, 2))
    for name in ("text-pocket", "blur-1", "blur-2"):  # any stores of the same shape
        write_text_store(root / "pocket", name=name)
    return root


def config(root, *overrides, verb="train-encoder"):
    small = SMALL if verb == "train-encoder" else ("data.split.val_concepts=4",)
    return load(verb, "pocket", None, [f"data.root={root}", *small, *overrides])


def run(root, directory, *overrides, **keywords):
    return train_encoder.run(config(root, *overrides), directory=directory, command="test", **keywords)


@pytest.mark.parametrize(
    ("overrides", "terms", "inputs"),
    [
        (("loss.kind=siglip", "loss.logit_scale_init=2.303", *NO_LATENT), {"contrastive", "mse"}, set()),
        (("loss.text=0.1", "loss.cosine=0.5", "text_target.name=text-pocket", *NO_LATENT),
         {"contrastive", "mse", "text", "cosine"}, {"text-pocket"}),
        ((LEVELS % "random", *NO_LATENT), {"contrastive", "mse"}, {"blur-1", "blur-2"}),
        ((LEVELS % "mean", "subject_dropout=0.2"), {"contrastive", "mse", "vae_latent"}, {"blur-1", "vae-pocket"}),
        ((LEVELS % "uncertainty", FUSED, *NO_LATENT), {"contrastive", "mse"}, {"blur-2", "vae-pocket"}),
        (("loss.positives=none", "loss.logit_scale=raw", "loss.normalise_eeg=false", "loss.normalise_image=false",
          "loss.learn_logit_scale=false", "loss.scale=10", *NO_LATENT), {"contrastive", "mse"}, set()),
    ],
    ids=["siglip", "text and cosine", "random level", "mean level", "uncertainty, fused", "as ATM"],
)  # fmt: skip
def test_every_kind_trains_and_says_what_it_read(root, tmp_path, overrides, terms, inputs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    manifest = run(root, tmp_path, *overrides)
    assert {"trials/sub-01", "targets/clip-pocket"} | {f"targets/{name}" for name in inputs} <= set(manifest.inputs)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}_epoch" for name in terms} | {f"val/{name}" for name in terms} <= tags
    assert ("train/levels_blurrier" in tags) == any("uncertainty" in override for override in overrides)
    network = eegrecon.load(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert state["known_subjects"].tolist() == [1]
    assert ("logit_bias" in state) == ("loss.kind=siglip" in overrides)
    assert not any(name.startswith("levels") for name in state)
    if "loss.learn_logit_scale=false" in overrides:
        assert network.logit_scale.item() == pytest.approx(np.log(1 / 0.07))


@pytest.fixture(scope="module")
def projected(root, tmp_path_factory):
    home = tmp_path_factory.mktemp("projected")
    options = ("image_projection={name: linear, args: {dim: 32}}", "loss.mse=0", "baseline_ridge=true", *NO_LATENT)
    run(root, home / "encoder", FUSED, *options)
    return home


def test_a_learned_space_goes_through_validation_test_and_loading(root, projected):
    manifest = read_manifest(projected / "encoder")
    interface = manifest.interface
    assert (interface["dim"], interface["embed_dim"], interface["projection"]) == (256 + 1024, 32, "linear")
    network = eegrecon.load(projected / "encoder")
    data = train_encoder.build_data(config(root, FUSED, *NO_LATENT))
    batch = data.averaged("val")
    with torch.inference_mode():
        eeg_embeds = network(batch["eeg"], batch["subject"])
        image_embeds = network.project_images(batch["targets"]["image"])
    rows = load_embeds(projected / "encoder" / "embeds" / "val.safetensors")
    np.testing.assert_allclose(rows["eeg_embeds"], eeg_embeds.numpy(), atol=1e-4)
    assert image_embeds.shape == (16, 32)
    # validation's galleries, one picture of every concept each, in the learned space
    cosine = torch.cosine_similarity(eeg_embeds[:, None], image_embeds[None], dim=2)
    exemplar = torch.arange(16) % 4
    hits = [bool(cosine[i, exemplar == exemplar[i]].max() == cosine[i, i]) for i in range(16)]
    metrics = json.loads((projected / "encoder" / "metrics.json").read_text())["metrics"]
    assert metrics["val/retrieval_top1_4way"]["value"] == pytest.approx(np.mean(hits))
    assert manifest.selection["value"] == pytest.approx(np.mean(hits))
    assert metrics["val/retrieval_top1_4way_ridge"]["value"] > 0.5  # in the target's own space

    options = ("pictures=false", "target.name=clip-pocket", FUSED)
    done = evaluate.run(config(root, *options, verb="evaluate"), directory=projected / "evaluate", command="test")
    assert done.metrics["test/retrieval_top1_4way_ridge"] > 0.5
    assert "fusion/vae-pocket" in done.inputs
    cfg = config(root, "pictures=false", verb="evaluate")
    with pytest.raises(ArtifactError, match="dim is 1280 there and 256 here"):
        evaluate.run(cfg, directory=projected / "evaluate-plain", command="test")
    cfg = config(root, *options, "text_target.name=text-pocket", verb="evaluate")
    with pytest.raises(ConfigError, match="names have no place"):
        evaluate.run(cfg, directory=projected / "evaluate-text", command="test")


def test_the_prior_refuses_a_learned_space(root, tmp_path):
    run(root, tmp_path / "encoder", "image_projection.name=linear", "loss.mse=0", *NO_LATENT)
    with pytest.raises(ArtifactError, match=r"image_projection=linear, so its embeddings lie in a learned space"):
        train_prior.run(config(root, verb="train-prior"), directory=tmp_path / "prior", command="test")


def test_a_killed_run_with_levels_continues_as_if_it_had_not_been(root, tmp_path, monkeypatch):
    monkeypatch.setattr(target_levels, "BOUND", 0.3)  # so that many pictures move
    options = (LEVELS % "uncertainty", "subject_dropout=0.3", "trainer.max_epochs=3", *NO_LATENT)
    options += ("select.monitor=val/mse", "select.mode=min")
    assert run(root, tmp_path / "whole", *options).selection["epoch"] == 2  # else nothing after the kill would count
    step = EncoderModule.training_step

    def dies(self, batch, batch_idx):
        if self.current_epoch == 2:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderModule, "training_step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            run(root, tmp_path / "killed", *options)
    run(root, tmp_path / "killed", *options)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_subjects_that_are_left_out_are_unknown(root, tmp_path):
    loso = ("data.protocol=leave_one_subject_out", "data.subjects=[1,2]", "data.test_subject=2", "subject_dropout=0.5")
    per_subject = "encoder.args={subject_token: per_subject, n_subjects: 2}"
    run(root, tmp_path / "loso", *loso, per_subject, *NO_LATENT)
    network = eegrecon.load(tmp_path / "loso")
    assert network.known_subjects.tolist() == [1]
    eeg = torch.randn(2, 63, 250)
    who = [network(eeg, torch.full((2,), subject)) for subject in (0, 1, 2, 99)]
    assert torch.equal(who[2], who[0])
    assert torch.equal(who[3], who[0])
    assert not torch.equal(who[1], who[0])
    joint = ("data.protocol=joint", "data.subjects=[1,2]", "data.test_subject=2")
    run(root, tmp_path / "joint", *joint, per_subject, *NO_LATENT)
    network = eegrecon.load(tmp_path / "joint")
    assert not torch.equal(network(eeg, torch.tensor([1, 1])), network(eeg, torch.tensor([2, 2])))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss.text=0.1"], ["loss.text is 0.1 but text_target.name is empty"]),
        (["target.name=clip-poket"], ["target.name is 'clip-poket', which is not in", "did you mean 'clip-pocket'"]),
        (["fusion_targets=[{name: nothing}]"], ["fusion_targets[0].name is 'nothing'", "clip-pocket"]),
        (["image_projection.name=mlp"], ["loss.mse is 0.1", "image_projection is 'mlp'"]),
        (["loader.batch_size=1"], ["loader.batch_size is 1 over 1 process", "info_nce", "at least 2 rows a process"]),
        (["loader.batch_size=2", "trainer.devices=2"], ["loader.batch_size is 2 over 2 processes"]),
        (["loss.contrastive=0", "loss.mse=0", "loss.vae_latent=0"], ["every weight of the loss"]),
        (["target.mixing=mean"], ["target.levels names nothing to mix"]),
        (["target.levels=[blur-1]"], ["target.mixing is 'none', which would ignore them"]),
        (["target.levels=[blur-1, blur-1]", "target.mixing=mean"], ["names a store twice: blur-1, blur-1"]),
        (["encoder.name=ridge", "subject_dropout=0.1"], ["subject_dropout is set, but the encoder ridge"]),
        (["select.monitor=val/cosine", "select.mode=min"], ["expected one of", "val/vae_latent"]),
        (["loss.text=1", "text_target.name=vae-pocket"], ["'vae-pocket'", "kind vae_latent and shape (4, 16, 16)"]),
        # all problems at once
        (
            ["loss.text=0.1", "loader.batch_size=1", "target.mixing=mean"],
            ["text_target", "batch_size", "nothing to mix"],
        ),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(root, tmp_path, overrides, words):
    with pytest.raises(ConfigError) as error:
        run(root, tmp_path / "encoder", *overrides)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "encoder").exists()


def test_blur_levels_must_be_sharp_first_for_uncertainty(root, tmp_path, monkeypatch):
    for name, blur in (("blur-1", 4), ("blur-2", 2)):
        path = root / "pocket" / "targets" / name / "header.json"
        text = path.read_text()
        path.write_text(json.dumps({**json.loads(text), "blur": blur}))
    with pytest.raises(ConfigError, match=r"blurred by 0, 4, 2 in their order .* needs them sharp first"):
        run(root, tmp_path / "encoder", LEVELS % "uncertainty")
