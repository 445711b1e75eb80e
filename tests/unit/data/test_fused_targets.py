"""Several stores as one vector, levels of training rows, and who may have them."""

import numpy as np
import pytest
import torch

from eegrecon.config import LoaderConfig, TargetConfig, load
from eegrecon.data import ImageSet, TargetStore, target_dir
from eegrecon.data.batches import whole
from eegrecon.data.fused_targets import FusedTargets
from eegrecon.errors import ConfigError, DataError
from eegrecon.stages.data_module import data_module, ladder
from tests.builders import build_tiny_set
from tests.builders_runs import write_text_store


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    build_tiny_set(root)
    write_text_store(root / "pocket", name="blurred")  # any other store of the same shape
    return root


def module(root, target, *, fusion=(), stage="encoder"):
    data = load("train-encoder", "pocket", overrides=[f"data.root={root}", "data.split.val_concepts=2"]).data
    loader = LoaderConfig(batch_size=4) if stage == "encoder" else None
    return data_module(stage, data, {"image": target}, seed=0, fusion=fusion, loader=loader)


def stores(root, *names):
    images = ImageSet.from_root(root / "pocket")
    return images, [TargetStore(target_dir(root / "pocket", name), images) for name in names]


def test_rows_are_put_end_to_end(root):
    images, (clip, vae) = stores(root, "clip-pocket", "vae-pocket")
    index = images.train_index[[4, 2, 2]]
    fused = FusedTargets(clip, [(vae, False), (vae, True)])
    assert (fused.name, fused.dim, fused.shape) == ("clip-pocket+vae-pocket+vae-pocket", 256 + 2048, (2304,))
    rows, flat = fused.rows(index), vae.rows(index).reshape(3, -1)
    np.testing.assert_array_equal(rows[:, :256], clip.rows(index))
    np.testing.assert_array_equal(rows[:, 256:1280], flat)
    np.testing.assert_allclose(rows[:, 1280:], flat / np.linalg.norm(flat, axis=1, keepdims=True), rtol=1e-6)
    interface = fused.interface()
    assert interface["dim"] == 2304
    assert [part["normalised"] for part in interface["fusion"]] == [False, True]
    assert FusedTargets(clip).interface() == clip.interface()


def test_batches_hold_one_vector_and_it_is_scored_as_one(root):
    data = module(root, TargetConfig(name="clip-pocket"), fusion=[TargetConfig(name="vae-pocket", l2_normalise=True)])
    assert data.target_shapes == {"image": (256 + 1024,)}
    batch = data.averaged("val")
    assert batch["targets"]["image"].shape[1] == 1280
    assert batch["targets"]["image"][:, 256:].norm(dim=1).tolist() == pytest.approx([1.0] * len(batch["eeg"]), rel=1e-5)


def test_an_array_alone_is_read_as_a_vector(root):
    data = module(root, TargetConfig(name="vae-pocket"))
    assert data.target_shapes == {"image": (1024,)}
    assert data.targets["image"].name == "vae-pocket"


def test_levels_are_of_training_rows_alone_and_in_their_order(root):
    target = TargetConfig(name="clip-pocket", levels=["blurred"], mixing="random")
    data = module(root, target, fusion=[TargetConfig(name="vae-pocket")])
    assert "levels" not in data.averaged("val")["targets"]
    batch = whole(data.dataset("train"))
    targets = batch["targets"]
    assert targets["levels"].shape == (len(batch["eeg"]), 2, 1280)
    assert torch.equal(targets["levels"][:, 0], targets["image"])
    _, (blurred,) = stores(root, "blurred")
    np.testing.assert_array_equal(targets["levels"][:, 1, :256], blurred.rows(batch["image_index"].numpy()))
    assert torch.equal(targets["levels"][:, 1, 256:], targets["image"][:, 256:])


def test_the_ladder():
    assert ladder(TargetConfig(name="b", levels=["c", "d"], mixing="random")) == ["b", "c", "d"]
    assert ladder(TargetConfig(name="b", levels=["a", "b", "c"], mixing="mean")) == ["a", "b", "c"]
    assert ladder(TargetConfig(name="b")) == []


def test_levels_elsewhere_or_of_another_shape_are_refused(root):
    target = TargetConfig(name="clip-pocket", levels=["blurred"], mixing="mean")
    with pytest.raises(ConfigError, match=r"'clip-pocket' has levels \['blurred'\] .* only the `target` of"):
        module(root, target, stage="evaluate")
    with pytest.raises(ConfigError, match="only the `target`"):
        module(root, TargetConfig(name="clip-pocket"), fusion=[target])
    wrong = TargetConfig(name="clip-pocket", levels=["vae-pocket"], mixing="mean")
    with pytest.raises(DataError, match=r"'vae-pocket' .* of shape \(4, 16, 16\), but the target 'clip-pocket' has"):
        module(root, wrong)
