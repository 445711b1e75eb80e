"""Pictures without EEG must not bring held-out pictures back."""

import numpy as np
import pytest

from eegrecon.data import ImageSet, TargetStore, target_dir, trial_dir
from eegrecon.data.image_only import image_only_rows
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import DataError
from tests.builders import build_tiny_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets: `other` names its concepts alike and has more of them; its pictures are others."""
    root = tmp_path_factory.mktemp("data")
    build_tiny_set(root)
    build_tiny_set(root, seed=1, train_concepts=20, set_name="other")
    return root


def split_of(root):
    module = ThingsDataModule(
        stage="encoder", images_root=root / "pocket", trial_dirs=[trial_dir(root / "pocket", 1)],
        target_dirs={"image": target_dir(root / "pocket", "clip-pocket")}, val_concepts=4,
    )  # fmt: skip
    return module.images, module.split


def rows(root, set_name):
    images, split = split_of(root)
    pictures = images if set_name == "pocket" else ImageSet.from_root(root / set_name)
    store = TargetStore(target_dir(root / set_name, "clip-pocket"), pictures)
    return image_only_rows(store, pictures, images, split), pictures, store, images, split


def test_of_the_same_set_the_training_pictures_are_left(sets):
    found, _, store, _, split = rows(sets, "pocket")
    assert len(found) == 8 * 3
    np.testing.assert_array_equal(found, store.rows(split.train))


def test_concepts_that_are_held_out_here_are_left_out_there(sets):
    found, pictures, store, images, split = rows(sets, "other")
    held_out = {images.concept_of(i) for i in [*split.val, *split.test]}
    kept = [i for i in pictures.train_index if pictures.concept_of(i) not in held_out]
    assert len(kept) == (20 - 4) * 3
    np.testing.assert_array_equal(found, store.rows(np.array(kept)))


def test_a_held_out_file_under_another_concept_is_left_out_too(sets, tmp_path):
    images, split = split_of(sets)
    pictures = ImageSet.from_root(sets / "other")
    store = TargetStore(target_dir(sets / "other", "clip-pocket"), pictures)
    before = len(image_only_rows(store, pictures, images, split))
    kept = next(i for i in pictures.train_index if pictures.records[i].concept == "thing20")
    object.__setattr__(pictures.records[kept], "sha256", images.records[split.test[0]].sha256)
    assert len(image_only_rows(store, pictures, images, split)) == before - 1


def test_nothing_left_is_a_sentence(sets):
    images, split = split_of(sets)
    store = TargetStore(target_dir(sets / "pocket", "clip-pocket"), images)
    held_out = type(split)(**{**vars(split), "val": images.train_index})
    with pytest.raises(DataError, match=r"Of the 36 training pictures .* 0 are neither .*diffusion\.image_only"):
        image_only_rows(store, images, images, held_out)
