import hashlib
import json

import numpy as np
import pytest

from eegrecon.data import ImageSet, gallery_of, held_out_concepts, make_split
from eegrecon.data.images import ImageRecord
from eegrecon.data.splits import concept_folds
from eegrecon.errors import ConfigError, DataError


def image_set(n_train=20, exemplars=3, n_test=5):
    records = []
    for partition, count, each in (("train", n_train, exemplars), ("test", n_test, 1)):
        for concept in range(count):
            number = concept + (n_train if partition == "test" else 0)
            for e in range(each):
                name = f"{partition}/{concept + 1:05d}_c{number}/c{number}_{e}"
                records.append(ImageRecord(name, f"c{number}", number, f"{name}.jpg", "0"))
    return ImageSet("nowhere", records, "0" * 64)


def split_of(images, **kw):
    args = {"set": "pocket", "protocol": "within_subject", "subject": 1, "val_concepts": 6, "split_seed": 0}
    return make_split(images, images.train_index, **{**args, **kw})


def test_validation_holds_out_whole_concepts():
    images = image_set()
    split = split_of(images)
    concepts = images.concept_index
    assert len(split.val) == 6 * 3
    assert len(np.unique(concepts[split.val])) == 6
    assert not set(concepts[split.train]) & set(concepts[split.val])
    assert sorted([*split.train, *split.val, *split.test]) == list(range(len(images)))
    assert split.test.tolist() == images.test_index.tolist()


def test_which_concepts_is_a_frozen_fact():
    # If this changes, so do all published splits and the shipped weights' holdout.
    assert held_out_concepts(544, 60, 0)[:5] == [12, 18, 26, 36, 45]
    assert set(held_out_concepts(544, 30, 0)) < set(held_out_concepts(544, 60, 0))
    images = image_set()
    val = np.unique(images.concept_index[split_of(images).val])
    assert val.tolist() == held_out_concepts(20, 6, 0)


def test_split_seed_protocol_and_subject():
    images = image_set()
    one = split_of(images)
    assert split_of(images, split_seed=1).val.tolist() != one.val.tolist()
    assert split_of(images, subject=4).sha256 == one.sha256  # every subject of a set holds out the same pictures
    assert split_of(images, protocol="joint", subject=[1, 2]).sha256 == one.sha256
    assert set(split_of(images, val_concepts=3).val) < set(one.val)
    with pytest.raises(ConfigError, match="needs exactly one subject"):
        split_of(images, subject=[1, 2])
    assert split_of(images, protocol="leave_one_subject_out", subject=[1, 2]).sha256 == one.sha256
    assert split_of(images, protocol="leave_one_subject_out", subject=[3]).subjects == (3,)
    with pytest.raises(ConfigError, match="'intra'"):
        split_of(images, protocol="intra")
    assert len(split_of(images, val_concepts=0).val) == 0
    for count in (-1, 20):
        with pytest.raises(ConfigError, match="below 20"):
            split_of(images, val_concepts=count)


def test_hashes_are_of_the_id_lists():
    images = image_set()
    split = split_of(images)
    ids = [images.records[i].image_id for i in split.val]
    assert split.describe()["sha256"]["val"] == hashlib.sha256("\n".join(ids).encode()).hexdigest()
    assert split.describe()["sha256"]["all"] == split.sha256
    assert json.loads(json.dumps(split.to_json()))["val"] == split.val.tolist()
    fewer = make_split(
        images,
        np.setdiff1d(images.train_index, split.train[:1]),
        set="pocket",
        protocol="within_subject",
        subject=1,
        val_concepts=6,
    )
    assert fewer.sha256 != split.sha256
    assert fewer.val.tolist() == split.val.tolist()


def test_trials_must_fit_the_pictures():
    images = image_set()
    val = split_of(images).val
    concept = images.concept_index[val[0]]
    lacking = images.train_index[images.concept_index[images.train_index] != concept]
    args = {"set": "s", "protocol": "within_subject", "subject": 1, "val_concepts": 6}
    with pytest.raises(DataError, match="has trials for 5 only"):
        make_split(images, lacking, **args)
    with pytest.raises(DataError, match="no training picture"):
        make_split(images, images.test_index, **args)


def test_gallery_is_the_first_picture_of_each_concept():
    images = image_set()
    assert gallery_of(images, np.array([8, 7, 3, 5, 4])).tolist() == [3, 7]


def test_folds_are_of_concepts_even_and_drawn_from_the_split_seed():
    folds = concept_folds(103, 5)
    assert sorted(folds.count(k) for k in range(5)) == [20, 20, 21, 21, 21]
    assert folds == concept_folds(103, 5)
    assert folds != concept_folds(103, 5, split_seed=1)
    assert folds != sorted(folds)
    for wrong in (0, 1, 104):
        with pytest.raises(ConfigError, match=rf"cross_fit is {wrong}, .*at most 103"):
            concept_folds(103, wrong)


def test_a_fold_is_left_out_of_training_and_of_nothing_else():
    images = image_set()
    whole = split_of(images)
    parts = [split_of(images, fold=(k, 3)) for k in range(3)]
    left_out = [np.setdiff1d(whole.train, part.train) for part in parts]
    assert sorted(np.concatenate(left_out).tolist()) == whole.train.tolist()
    named = [{images.concept_of(i) for i in gone} for gone in left_out]
    assert sum(map(len, named)) == len(set().union(*named)) == 14  # no concept in two folds
    for part in parts:
        assert part.val.tolist() == whole.val.tolist()
        assert part.test.tolist() == whole.test.tolist()
        assert part.sha256 != whole.sha256
