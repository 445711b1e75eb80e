"""Published feature files: what is read, and every way in which a file can fail to belong to the pictures."""

import pickle

import numpy as np
import pytest
import torch

from eegrecon.data import ImageSet
from eegrecon.data.feature_files import FeatureFiles, concept_rows
from eegrecon.errors import ConfigError, DataError

DIM = 1024  # as published
NORM = 22.4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from tests.builders import build_tiny_set

    return ImageSet.from_root(build_tiny_set(tmp_path_factory.mktemp("set")))


def content(images, partition, *, normalised=True, seed=0):
    """A dict with the published keys: pictures near the texts of their concepts."""
    rng = np.random.default_rng([seed, partition == "test"])
    index = images.train_index if partition == "train" else images.test_index
    folders = [images.records[int(i)].folder for i in index]
    text = rng.normal(size=(len(set(folders)), DIM))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    pictures = np.stack([text[sorted(set(folders)).index(f)] for f in folders]) + 0.05 * rng.normal(
        size=(len(index), DIM)
    )
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    scale = 1.0 if normalised else NORM + rng.normal(size=(len(index), 1))
    return {
        "text_features": torch.from_numpy(text.astype(np.float32)),
        "img_features": torch.from_numpy((pictures * scale).astype(np.float32)),
    }


def write(folder, images, **changed):
    """Write a pair; `changed` replaces the content of a partition."""
    for partition in ("train", "test"):
        torch.save(changed.get(partition, content(images, partition)), folder / f"ViT-H-14_features_{partition}.pt")
    return str(folder)


@pytest.mark.parametrize("normalised", [True, False])
def test_rows_are_the_files_rows(tmp_path, images, normalised):
    pair = {p: content(images, p, normalised=normalised) for p in ("train", "test")}
    files = FeatureFiles(write(tmp_path, images, **pair))
    assert files.check(images, "image") == (DIM,)
    assert files.normalised is normalised
    assert np.array_equal(files.rows(images, "image", "train", 5, 9), pair["train"]["img_features"][5:9].numpy())
    assert np.array_equal(files.rows(images, "image", "test", 0, 4), pair["test"]["img_features"].numpy())
    header = files.header("image")
    assert (header["model"], header["weights_tag"]) == ("ViT-H-14", "laion2b_s32b_b79k")
    assert (
        header["layer"] == f"final, {'L2-normalised in the file' if normalised else 'lengths as the model gave them'}"
    )
    assert "random crop" in header["transform"]


def test_texts_are_repeated_for_every_picture_of_their_concept(tmp_path, images):
    files = FeatureFiles(write(tmp_path, images))
    files.check(images, "text")
    stored = content(images, "train")["text_features"].numpy()
    folders = [images.records[int(i)].folder for i in images.train_index]
    assert concept_rows(images, "train").tolist() == [sorted(set(folders)).index(f) for f in folders]
    oracle = np.stack([stored[sorted(set(folders)).index(f)] for f in folders])
    assert np.array_equal(files.rows(images, "text", "train", 0, len(folders)), oracle)
    assert files.header("text")["transform"] is None


def test_bare_tensors_and_bfloat16(tmp_path, images):
    pair = {p: content(images, p)["img_features"].to(torch.bfloat16) for p in ("train", "test")}
    files = FeatureFiles(write(tmp_path, images, **pair), normalised=None)
    files.normalised = None
    assert files.check(images, "image") == (DIM,)
    assert files.rows(images, "image", "train", 0, 2).dtype == np.float32
    with pytest.raises(DataError, match="has no text_features, which a target of kind text"):
        files.check(images, "text")


def test_the_file_is_mapped_not_read(tmp_path, images, monkeypatch):
    seen = {}
    real = torch.load
    monkeypatch.setattr("torch.load", lambda *a, **k: seen.update(k) or real(*a, **k))
    FeatureFiles(write(tmp_path, images)).check(images, "image")
    assert seen["mmap"] is True
    assert seen["weights_only"] is True


def shuffled(block):
    return block[torch.from_numpy(np.random.default_rng(1).permutation(len(block)))]


def damaged(images, **of):
    """Contents of both files with one block replaced by a function of it."""
    values = content(images, "train")
    return {"train": {**values, **{key: make(values[key]) for key, make in of.items()}}}


def with_value(block, value):
    block = block.clone()
    block[7] = value
    return block


DAMAGE = {
    "too few pictures": (lambda i: damaged(i, img_features=lambda b: b[:-1]),
                         r"has 35 rows of img_features, but .* has 36 train pictures"),
    "too few concepts": (lambda i: damaged(i, text_features=lambda b: b[:-1]),
                         r"has 11 rows of text_features, but .* has 12 train concepts"),
    "another order": (lambda i: damaged(i, img_features=shuffled), r"train.pt do not belong to .*THINGS order"),
    "other texts": (lambda i: damaged(i, text_features=shuffled), r"do not belong to the texts of their concepts"),
    "shifted by a concept": (lambda i: damaged(i, img_features=lambda b: b.roll(3, 0)), "do not belong to the texts"),
    "NaN": (lambda i: damaged(i, img_features=lambda b: with_value(b, np.nan)), "Row 7 of img_features .* NaN"),
    "zero": (lambda i: damaged(i, img_features=lambda b: with_value(b, 0)), "Row 7 of img_features .* is zero"),
    "two sizes": (lambda i: damaged(i, text_features=lambda b: b[:, :512]), "vectors of several sizes"),
    "one normalised": (lambda i: damaged(i, img_features=lambda b: 3 * b), r"found train: no and test: yes"),
    "no matrix": (lambda i: damaged(i, img_features=lambda b: b[:, None]), r"must be a matrix .*36, 1, 1024"),
    "whole numbers": (lambda i: damaged(i, img_features=lambda b: b.long()), "must be a matrix of numbers.*int64"),
    "other keys": (lambda i: {"train": {"features": torch.zeros(2, 2)}}, "must hold a dict .* but it holds features"),
    "a list": (lambda i: {"test": [torch.zeros(2)]}, "must hold a dict with .* but it holds list"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_sentence(tmp_path, images, name):
    make, message = DAMAGE[name]
    with pytest.raises(DataError, match=message) as caught:
        FeatureFiles(write(tmp_path, images, **make(images))).check(images, "image")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_wrong_one_of_two_files_with_one_name(tmp_path, images, normalised):
    pair = {p: content(images, p, normalised=not normalised) for p in ("train", "test")}
    files = FeatureFiles(write(tmp_path, images, **pair), normalised=normalised)
    with pytest.raises(DataError, match=f"L2-normalised: {'yes' if normalised else 'no'}, but found train: "):
        files.check(images, "image")


class Evil:
    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return (open, (str(self.ran), "w"))


@pytest.mark.parametrize("how", ["zip", "pickle"])
def test_a_hostile_file_is_refused_by_name_and_nothing_runs(tmp_path, images, how):
    folder, ran = write(tmp_path, images), tmp_path / "ran"
    path = tmp_path / "ViT-H-14_features_train.pt"
    if how == "zip":
        torch.save({"img_features": Evil(ran)}, path)
    else:
        path.write_bytes(pickle.dumps({"img_features": Evil(ran)}))
    with pytest.raises(DataError, match=r"ViT-H-14_features_train.pt cannot be read .*download it again"):
        FeatureFiles(folder).check(images, "image")
    assert not ran.exists()
    if how == "zip":
        with pytest.raises(DataError, match=r"it names (io|_io)\.open"):
            FeatureFiles(folder).check(images, "image")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncation(tmp_path, images, share):
    folder, path = write(tmp_path, images), tmp_path / "ViT-H-14_features_test.pt"
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
    with pytest.raises(DataError, match=r"features_test.pt cannot be read as a file of tensors") as caught:
        FeatureFiles(folder).check(images, "image")
    assert "\n" not in str(caught.value)


def test_absent(tmp_path, images):
    with pytest.raises(DataError, match=r"other_train.pt does not exist: set args.folder and args.stem"):
        FeatureFiles(write(tmp_path, images), stem="other").check(images, "image")
    with pytest.raises(ConfigError, match="spot_check is -1"):
        FeatureFiles(".", spot_check=-1)
