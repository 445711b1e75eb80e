"""Cross-fitted training embeddings: which encoder embeds what, resumption, ridge against sklearn, the prior."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

import eegrecon
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.config import load
from eegrecon.data import ImageSet, TargetStore, TrialStore, target_dir, trial_dir
from eegrecon.data.splits import picture_folds
from eegrecon.diffusion.scaled import ScaledNetwork
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.modules.encoder import EncoderModule
from eegrecon.stages import cross_fit, encoder_training, train_encoder, train_prior
from eegrecon.stages.prior_checks import CROSS_FITTED
from tests.builders import build_tiny_set

pytestmark = pytest.mark.usefixtures("clean_rank")
TRAINER = "trainer={accelerator: cpu, devices: 1, max_epochs: 2, enable_progress_bar: false, num_sanity_val_steps: 0}"
RIDGE = ("encoder.name=ridge", "cross_fit=3")
SMALL = ("encoder={name: eeg_project}", "loss.vae_latent=0", "latent_target.name=''", "cross_fit=3")
MEMBERS = ("image_index", "subject", "repetition")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    build_tiny_set(root, train_concepts=16, exemplars=4)
    return root


def config(root, *overrides, verb="train-encoder"):
    small = [f"data.root={root}", "data.split.val_concepts=4", "loader.batch_size=16", TRAINER]
    small += ["baseline_ridge=false"] if verb == "train-encoder" else ["trainer.check_val_every_n_epoch=1"]
    return load(verb, "pocket", None, [*small, *overrides])


def run(root, directory, *overrides, **keywords):
    return train_encoder.run(config(root, *overrides), directory=directory, command="test", **keywords)


def folds_of(root, count=3):
    """image_index of the training pictures of each fold, by another road than the code's: concept by concept."""
    data = train_encoder.build_data(config(root))
    numbers = picture_folds(data.images, data.split.train, count)
    return [set(data.split.train[numbers == k].tolist()) for k in range(count)]


class Spy:
    """Which pictures were trained on and validated in which directory, and how often a step was made there."""

    def __init__(self, monkeypatch):
        self.trained, self.validated, self.steps = {}, {}, {}
        training, validation = EncoderModule.training_step, EncoderModule.validation_step

        def note(seen, module, batch):
            home = str(module.trainer.default_root_dir)
            key = home.rsplit("folds/", 1)[1] if "folds/" in home else "main"
            seen.setdefault(key, set()).update(batch["image_index"].tolist())
            return key

        def training_step(module, batch, batch_idx):
            key = note(self.trained, module, batch)
            self.steps[key] = self.steps.get(key, 0) + 1
            self.before_step(key, module)
            return training(module, batch, batch_idx)

        def validation_step(module, batch, batch_idx):
            note(self.validated, module, batch)
            return validation(module, batch, batch_idx)

        monkeypatch.setattr(EncoderModule, "training_step", training_step)
        monkeypatch.setattr(EncoderModule, "validation_step", validation_step)

    def before_step(self, key, module):
        """For tests that kill."""


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A finished encoder with three folds, and what its trainings saw."""
    directory = tmp_path_factory.mktemp("run") / "encoder"
    with pytest.MonkeyPatch.context() as monkeypatch:
        spy = Spy(monkeypatch)
        run(root, directory, *SMALL)
    return directory, spy


def test_no_fold_encoder_trains_on_its_fold_or_on_anything_held_out(root, finished):
    _, spy = finished
    data = train_encoder.build_data(config(root))
    train, held_out = set(data.split.train.tolist()), set(data.split.val.tolist()) | set(data.split.test.tolist())
    folds = folds_of(root)
    assert set().union(*folds) == train
    assert sum(map(len, folds)) == len(train)
    concepts = [{data.images.concept_of(i) for i in fold} for fold in folds]
    assert [len(names) for names in concepts] == [4, 4, 4]
    assert len(set().union(*concepts)) == 12
    assert spy.trained["main"] <= train
    for k, fold in enumerate(folds):
        assert len(spy.trained[str(k)]) > len(train) / 2
        assert spy.trained[str(k)] <= train - fold
        assert not spy.trained[str(k)] & held_out
        assert spy.validated[str(k)] == set(data.split.val.tolist())


def test_rows_are_those_of_the_encoder_in_the_same_order_with_other_embeddings(root, finished):
    directory, _ = finished
    in_sample = load_embeds(directory / "embeds" / "train.safetensors")
    crossed = load_embeds(directory / CROSS_FITTED)
    for name in MEMBERS:
        assert np.array_equal(in_sample[name], crossed[name]), name
    assert in_sample["eeg_embeds"].shape == crossed["eeg_embeds"].shape
    assert not np.isclose(in_sample["eeg_embeds"], crossed["eeg_embeds"]).all(axis=1).any()
    assert len(np.unique(crossed["eeg_embeds"], axis=0)) == len(crossed["eeg_embeds"])


def test_the_manifest_says_it_and_the_folds_are_gone(finished):
    directory, _ = finished
    manifest = read_manifest(directory)
    said = manifest.selection["cross_fit"]
    assert (said["folds"], said["by"], said["split_seed"], said["rows"]) == (3, "concept", 0, [16, 16, 16])
    assert [set(one) for one in said["selected"]] == [{"epoch", "monitor", "value"}] * 3
    assert CROSS_FITTED in manifest.outputs
    assert not (directory / "folds").exists()


def test_a_fold_is_what_an_encoder_trained_without_it_would_be(root, finished, tmp_path, monkeypatch):
    """Oracle: the stage itself, told that the split holds no picture of the fold for training."""
    directory, _ = finished
    build, fold = train_encoder.build_data, folds_of(root)[1]
    monkeypatch.setattr(train_encoder, "build_data", lambda cfg: build(cfg, fold=(1, 3)))
    run(root, tmp_path / "encoder", *SMALL[:-1])
    network = eegrecon.load(tmp_path / "encoder")
    batch = build(config(root)).averaged("train")
    rows = np.isin(batch["image_index"].numpy(), list(fold))
    with torch.inference_mode():
        expected = network(batch["eeg"][rows], batch["subject"][rows]).numpy()
    found = load_embeds(directory / CROSS_FITTED)["eeg_embeds"][rows]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_stage_killed_in_a_fold_goes_on_there_and_ends_alike(root, finished, tmp_path, monkeypatch):
    directory, usual = finished
    spy = Spy(monkeypatch)

    def dies(key, module):
        if key == "1" and module.current_epoch == 1:
            raise RuntimeError("killed")

    spy.before_step = dies
    with pytest.raises(RuntimeError, match="killed"):
        run(root, tmp_path, *SMALL)
    assert not (tmp_path / "manifest.json").exists()
    assert (tmp_path / "folds" / "0" / "embeds.safetensors").is_file()
    assert (tmp_path / "folds" / "1" / "checkpoints" / "last.ckpt").is_file()
    assert not (tmp_path / "folds" / "2").exists()
    spy.before_step, spy.steps = (lambda key, module: None), {}
    manifest = run(root, tmp_path, *SMALL)
    half = usual.steps["1"] // 2
    assert spy.steps == {"1": half, "2": usual.steps["2"]}  # neither the encoder nor fold 0 again
    assert manifest.selection["cross_fit"] == read_manifest(directory).selection["cross_fit"]
    for name in (CROSS_FITTED, "embeds/train.safetensors", "model.safetensors"):
        assert manifest.outputs[name]["sha256"] == read_manifest(directory).outputs[name]["sha256"], name
    assert not (tmp_path / "folds").exists()


def test_folds_of_another_config_or_of_an_overwritten_run_are_not_taken_over(root, tmp_path, monkeypatch):
    def killed(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(cross_fit, "_put_together", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(root, tmp_path, *RIDGE)
    assert (tmp_path / "folds" / "2" / "embeds.safetensors").is_file()
    fits, fit = [], encoder_training.fit_closed_form
    monkeypatch.setattr(encoder_training, "fit_closed_form", lambda *args: (fits.append(1), fit(*args))[1])
    with monkeypatch.context() as patch:
        patch.setattr(cross_fit, "_put_together", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(root, tmp_path, *RIDGE)
        assert len(fits) == 1  # the encoder's own: the folds were there
        with pytest.raises(RuntimeError, match="killed"):
            run(root, tmp_path, *RIDGE, "data.window=[0.0,0.5]")
        assert len(fits) == 1 + 4
        with pytest.raises(RuntimeError, match="killed"):
            run(root, tmp_path, *RIDGE, "data.window=[0.0,0.5]", overwrite=True)
        assert len(fits) == 1 + 4 + 4
    run(root, tmp_path, "encoder.name=ridge")
    assert not (tmp_path / "folds").exists()
    assert CROSS_FITTED not in read_manifest(tmp_path).outputs


def test_ridge_folds_are_sklearns_on_the_other_folds(root, tmp_path):
    """Oracle: numpy averages and moments of the other folds' pictures, and sklearn's ridge with the chosen penalty."""
    manifest = run(root, tmp_path, *RIDGE)
    selected = manifest.selection["cross_fit"]["selected"]
    assert all(set(one) == {"alpha", "monitor", "value"} for one in selected)
    images = ImageSet.from_root(root / "pocket")
    partition = TrialStore(trial_dir(root / "pocket", 1), images).open("train")
    eeg, shown = partition.average().astype(np.float64), partition.image_index
    targets = TargetStore(target_dir(root / "pocket", "clip-pocket"), images).rows(shown).astype(np.float64)
    folds = folds_of(root)
    found = load_embeds(tmp_path / CROSS_FITTED)
    for k, fold in enumerate(folds):
        others = np.isin(shown, list(set().union(*folds) - fold))
        mine = np.isin(shown, list(fold))
        mean, std = (getattr(eeg[others], name)(axis=(0, 2))[:, None] for name in ("mean", "std"))
        x, new = (((eeg[rows] - mean) / std).reshape(rows.sum(), -1) for rows in (others, mine))
        unit = np.square(x - x.mean(0)).sum() / min(x.shape)  # what a penalty is relative to
        ridge = SklearnRidge(alpha=selected[k]["alpha"] * unit).fit(x, targets[others])
        rows = np.isin(found["image_index"], list(fold))
        assert np.array_equal(found["image_index"][rows], shown[mine])
        np.testing.assert_allclose(found["eeg_embeds"][rows], ridge.predict(new), atol=2e-3)


def cosine_to_truth(root, path):
    rows = load_embeds(path)
    store = TargetStore(target_dir(root / "pocket", "clip-pocket"), ImageSet.from_root(root / "pocket"))
    truth = torch.from_numpy(store.rows(rows["image_index"]))
    return float(torch.cosine_similarity(torch.from_numpy(rows["eeg_embeds"]), truth).mean())


def test_cross_fitting_takes_away_what_the_encoder_knows_by_heart(root, tmp_path):
    """In-sample ridge is far nearer to the truth than for new concepts; cross-fitted it is as near as for those."""
    run(root, tmp_path, *RIDGE)
    names = ("embeds/train.safetensors", CROSS_FITTED, "embeds/val.safetensors")
    in_sample, crossed, new = (cosine_to_truth(root, tmp_path / name) for name in names)
    assert in_sample > new + 0.1
    assert abs(crossed - new) < 0.1


def test_single_trials_are_rows_of_their_own(root, tmp_path):
    run(root, tmp_path, *RIDGE, "data.repetitions=each")
    in_sample, crossed = (load_embeds(tmp_path / name) for name in ("embeds/train.safetensors", CROSS_FITTED))
    assert len(crossed["eeg_embeds"]) == 96
    assert set(crossed["repetition"].tolist()) == {0, 1}
    assert all(np.array_equal(in_sample[name], crossed[name]) for name in MEMBERS)


def test_a_prior_learns_from_them_where_it_is_told_to(root, tmp_path, monkeypatch):
    run(root, tmp_path / "encoder", *RIDGE)
    seen, scale = [], ScaledNetwork.fit

    def fit(self, image_embeds, eeg_embeds, *args):
        seen.append(eeg_embeds.clone())
        scale(self, image_embeds, eeg_embeds, *args)

    monkeypatch.setattr(ScaledNetwork, "fit", fit)
    priors = {}
    for embeds in ("in_sample", "cross_fitted"):
        cfg = config(root, "prior.name=ridge", f"embeds={embeds}", verb="train-prior")
        manifest = train_prior.run(cfg, directory=tmp_path / "prior", command="test", overwrite=True)
        priors[embeds] = manifest.outputs["model.safetensors"]["sha256"]
        assert json.loads((tmp_path / "prior" / "metrics.json").read_text())["protocol"]["embeds"] == embeds
    for found, name in zip(seen, ("embeds/train.safetensors", CROSS_FITTED), strict=True):
        assert np.array_equal(found.numpy(), load_embeds(tmp_path / "encoder" / name)["eeg_embeds"])
    assert priors["in_sample"] != priors["cross_fitted"]


def test_an_encoder_without_them_is_refused_in_one_sentence(root, tmp_path):
    run(root, tmp_path / "encoder", "encoder.name=ridge")
    cfg = config(root, "embeds=cross_fitted", verb="train-prior")
    with pytest.raises(ArtifactError, match=r"embeds is 'cross_fitted', but .*encoder has no .*cross_fit=5.*in_sample"):
        train_prior.run(cfg, directory=tmp_path / "prior", command="test")
    assert not (tmp_path / "prior").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cross_fit=1"], "cross_fit is 1, but there must be at least 2"),
        (["cross_fit=3", "permute_labels=true"], "cannot go with permute_labels"),
        (["cross_fit=3", "data.keep_minutes=1"], r"cannot go with data\.keep_minutes"),
        (["cross_fit=3", "init.run=elsewhere"], r"cannot go with init\.run"),
        (["cross_fit=3", "image_projection={name: linear, args: {dim: 8}}", "loss.mse=0"], "a space of its own"),
        (["cross_fit=13"], "at most 12, the number of concepts"),
        (["cross_fit=2", "loader.batch_size=32"], r"leaves 24 training rows .*fewer than loader\.batch_size 32"),
    ],
)
def test_contradictions_are_refused_before_any_training(root, tmp_path, monkeypatch, overrides, words):
    def never(*_):
        raise AssertionError("a training step was made")

    monkeypatch.setattr(EncoderModule, "training_step", never)
    with pytest.raises(ConfigError, match=words):
        run(root, tmp_path / "encoder", *overrides)
    assert not (tmp_path / "encoder" / "checkpoints").exists()
