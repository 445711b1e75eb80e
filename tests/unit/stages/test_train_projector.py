"""`train-projector`: what it writes, what it refuses, and that a projector learns more than the mean."""

import json

import numpy as np
import pytest
import torch

from eegrecon import load as load_network
from eegrecon.artifacts import read_manifest
from eegrecon.config import load
from eegrecon.data import ImageSet, TargetStore, target_dir
from eegrecon.data.layout import projector_dir
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.modules.projector import ProjectorModule
from eegrecon.stages import train_projector
from eegrecon.stages.target_plan import plans
from tests.builders import build_tiny_set, write_tokens

TOKENS, WIDTH = 5, 16


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny set with one more store: tokens that are a fixed function of the image embedding."""
    root = build_tiny_set(tmp_path_factory.mktemp("tiny"), train_concepts=40)
    write_tokens(root, TOKENS, WIDTH)
    return root


def config(root, *more):
    trainer = "trainer={accelerator: cpu, max_epochs: 60, enable_progress_bar: false}"
    words = [f"data.root={root.parent}", "data.split.val_concepts=6", "tokens=git-tiny", trainer]
    words += ["optim.args.lr=0.01", "batch_size=17", *more]
    return load("train-projector", "pocket_captions", None, words)


def run(root, *more, **options):
    return train_projector.run(config(root, *more), directory=root, command="test", **options)


def test_it_learns_more_than_the_mean_and_loads(root):
    manifest = run(root)
    home = projector_dir(root, "clip-git")
    assert manifest.interface["dim"] == 256
    assert manifest.interface["captioner"] == {"model": "git_tiny", "weights_tag": "t", "n_tokens": 5, "width": 16}
    assert manifest.data["split"]["n_images"] == {"train": 34 * 3, "val": 6 * 3, "test": 4}
    scores = {
        name: entry["value"] for name, entry in json.loads((home / "metrics.json").read_text())["metrics"].items()
    }
    assert scores["val/projector_mse"] < 0.9 * scores["val/projector_mse_mean"]
    # both numbers again, by hand, from the files
    images, network = ImageSet.from_root(root), load_network(home)
    rows, _ = train_projector.held_out_rows(images, config(root))
    stores = {name: TargetStore(target_dir(root, name), images) for name in ("clip-pocket", "git-tiny")}
    true = stores["git-tiny"].rows(rows["val"])
    with torch.no_grad():
        made = network(torch.from_numpy(stores["clip-pocket"].rows(rows["val"]))).numpy()
    assert np.square(made - true).mean() == pytest.approx(scores["val/projector_mse"], rel=1e-4)
    mean = stores["git-tiny"].rows(rows["train"]).mean(0)
    assert np.square(mean - true).mean() == pytest.approx(scores["val/projector_mse_mean"], rel=1e-4)
    before = (home / "manifest.json").read_text()
    run(root)
    assert (home / "manifest.json").read_text() == before
    with pytest.raises(ArtifactError, match=r"optim\.args\.lr"):
        run(root, "optim.args.lr=0.1")
    assert read_manifest(home).stage == "train-projector"


def test_held_out_concepts_are_those_of_every_other_stage(root):
    from eegrecon.data import held_out_concepts

    images = ImageSet.from_root(root)
    rows, _ = train_projector.held_out_rows(images, config(root))
    assert np.unique(images.concept_index[rows["val"]]).tolist() == held_out_concepts(40, 6, 0)
    assert not set(images.concept_index[rows["train"]]) & set(images.concept_index[rows["val"]])


def test_test_files_are_never_opened(root, monkeypatch):
    real = TargetStore.open

    def guarded(self, partition, **options):
        assert partition == "train"
        return real(self, partition, **options)

    monkeypatch.setattr(TargetStore, "open", guarded)
    run(root, "name=blind", "trainer.max_epochs=1")


def test_an_interrupted_one_continues(root, monkeypatch):
    whole = run(root, "name=whole", "trainer.max_epochs=2")
    real = ProjectorModule.training_step

    def killed(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 2:
            raise KeyboardInterrupt
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ProjectorModule, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(root, "name=cut", "trainer.max_epochs=2")
    assert (projector_dir(root, "cut") / "checkpoints" / "last.ckpt").is_file()
    assert run(root, "name=cut", "trainer.max_epochs=2").metrics == pytest.approx(whole.metrics)


@pytest.mark.parametrize(("word", "message"), [
    ("tokens=clip-pocket", "tokens is 'clip-pocket', which holds the kind image"),
    ("target.name=git-tiny", "target.name is 'git-tiny', which holds the kind layer"),
    ("batch_size=500", "only 102 pictures train"),
    ("trainer.fast_dev_run=true", "fast_dev_run is True, but train-projector needs False"),
    ("trainer.limit_train_batches=0", "limit_train_batches is 0"),
    ("trainer.enable_checkpointing=false", "enable_checkpointing is False"),
    ("trainer.logger=false", "trainer.logger is set by the stage"),
    ("trainer.max_epochs=0", "max_epochs is 0, but at least one epoch must be trained"),
    ("trainer.max_time=x", "trainer block of the train-projector config does not fit"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(root, word, message):
    with pytest.raises(ConfigError, match=message):
        run(root, "name=refused", word)


def test_the_git_tower_is_a_layer_without_a_choice_of_layer():
    targets = load("extract-targets", "pocket_captions").targets
    assert [plan.name for plan in plans(targets)] == ["clip-pocket", "git-pocket"]
    chosen = load("extract-targets", "pocket_captions", None, ["targets.git-pocket.layer=3"]).targets
    with pytest.raises(ConfigError, match="layer means nothing to the model git"):
        plans(chosen)


def test_from_pictures_to_captions_with_what_ships(tmp_path):
    """The real pocket tower, projector and captioner, end to end on a tiny set: every interface fits the next."""
    from eegrecon.config import ExtractTargetsConfig, SetConfig
    from eegrecon.pathways.captions import captions_of
    from eegrecon.stages import extract_targets

    root = build_tiny_set(tmp_path, train_concepts=4, exemplars=2, test_concepts=1)
    spec = load("extract-targets", "pocket_captions").targets["git-pocket"]
    cfg = ExtractTargetsConfig(data=SetConfig(root.name, str(root.parent)), targets={"git-pocket": spec})
    extract_targets.run(cfg, directory=root, command="test")
    images = ImageSet.from_root(root)
    store = TargetStore(target_dir(root, "git-pocket"), images)
    assert (store.kind, store.shape) == ("layer", (5, 1280))
    run(root, "tokens=git-pocket", "data.split.val_concepts=1", "batch_size=2", "trainer.max_epochs=1")
    image = TargetStore(target_dir(root, "clip-pocket"), images)
    found = captions_of(
        torch.randn(3, 256), image.interface(), source="captions", projector=projector_dir(root, "clip-git")
    )
    assert len(found) == 3
    assert all(text.startswith("a picture of") for text in found)
    again = extract_targets.run(cfg, directory=root, command="again")
    assert again.inputs["weights"]["path"].endswith("captioner/model.safetensors")
