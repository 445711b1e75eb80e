import json

import numpy as np
import pytest

from eegrecon.data import ImageSet, TargetStore, TargetStoreWriter, target_dir
from eegrecon.errors import DataError

HEADER = {"kind": "image", "model": "m", "weights_tag": "t", "weights_sha256": "0", "layer": "final"}


def test_numpy_and_json_suffice(tiny_set):
    images, path = ImageSet.from_root(tiny_set), target_dir(tiny_set, "vae-pocket")
    header = json.loads((path / "header.json").read_text())
    wanted = "schema kind model weights_tag weights_sha256 layer transform blur prompt dim scaling_factor images_sha256"
    assert sorted(header) == sorted([*wanted.split(), "files"])
    assert header["dim"] == 4 * 16 * 16
    assert header["images_sha256"] == images.sha256
    store = TargetStore(path, images)
    assert store.shape == (4, 16, 16)
    values, index = store.open("train", verify=True)
    assert np.array_equal(values, np.load(path / "train.npy", allow_pickle=False))
    assert index.tolist() == images.train_index.tolist()


def test_rows_follow_the_question(tiny_set):
    images = ImageSet.from_root(tiny_set)
    store = TargetStore(target_dir(tiny_set, "clip-pocket"), images)
    raw = np.concatenate([np.load(store.path / f"{p}.npy") for p in ("train", "test")])  # position = image_index here
    wanted = np.array([5, 2, 5, images.test_index[1]])
    assert np.array_equal(store.rows(wanted), raw[wanted])
    unit = TargetStore(store.path, images, l2_normalise=True)
    assert np.allclose(np.linalg.norm(unit.rows(wanted), axis=1), 1, atol=1e-6)
    assert np.allclose(unit.rows(wanted) * np.linalg.norm(raw[wanted], axis=1, keepdims=True), raw[wanted], atol=1e-5)
    with pytest.raises(DataError, match=r"lack 1 of the pictures .* number 999"):
        store.rows(np.array([0, 999]))
    with pytest.raises(DataError, match="only vectors"):
        TargetStore(target_dir(tiny_set, "vae-pocket"), l2_normalise=True)


def test_interface(tiny_set):
    store = TargetStore(target_dir(tiny_set, "clip-pocket"), l2_normalise=True)
    assert store.interface() == {
        "name": "clip-pocket",
        "model": "pocket_clip",
        "weights_tag": "tiny",
        "layer": "image_embeds",
        "dim": 256,
        "normalised": True,
    }


def test_training_rows_leave_test_files_alone(own_set):
    path = target_dir(own_set, "clip-pocket")
    for name in ("test.npy", "test_image_index.npy"):
        (path / name).unlink()
    images = ImageSet.from_root(own_set)
    assert TargetStore(path, images).rows(images.train_index).shape == (36, 256)


def test_damage_is_one_sentence(own_set):
    path, images = target_dir(own_set, "clip-pocket"), ImageSet.from_root(own_set)
    array = np.load(path / "train.npy", mmap_mode="r+")
    array[3, 7] = np.nan
    array.flush()
    assert TargetStore(path).rows(np.array([0, 1])).shape == (2, 256)
    with pytest.raises(DataError, match="NaN or infinite values for picture number 3"):
        TargetStore(path).rows(images.train_index)
    with (path / "train.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(DataError, match=r"truncated: expected \d+ bytes, found 500.*extract-targets"):
        TargetStore(path).open("train")
    header = json.loads((path / "header.json").read_text())
    (path / "header.json").write_text(json.dumps({**header, "images_sha256": "f" * 64}))
    with pytest.raises(DataError, match="another picture list"):
        TargetStore(path, images)
    (path / "header.json").write_text(json.dumps({**header, "dim": 12}))
    with pytest.raises(DataError, match="gives dim 12"):
        TargetStore(path)


def test_writer_goes_on_behind_the_last_whole_row(tmp_path, tiny_set):
    images, path = ImageSet.from_root(tiny_set), tmp_path / "clip"
    values = np.random.default_rng(0).normal(size=(len(images), 8)).astype(np.float32)
    first = TargetStoreWriter(path, images, HEADER, (8,))
    first.append("train", values[:10])
    first.suspend()
    with (path / ".train.npy.partial").open("ab") as file:
        file.write(b"half a row")
    second = TargetStoreWriter(path, images, HEADER, (8,))
    assert second.done("train") == 10
    second.append("train", values[10:36])
    second.append("test", values[36:])
    second.close()
    assert np.array_equal(TargetStore(path, images).rows(np.arange(len(images))), values)
    assert sorted(file.name for file in path.iterdir()) == [
        "header.json", "test.npy", "test_image_index.npy", "train.npy", "train_image_index.npy",
    ]  # fmt: skip


def test_writer_starts_over_for_another_model(tmp_path, tiny_set):
    images, path = ImageSet.from_root(tiny_set), tmp_path / "clip"
    first = TargetStoreWriter(path, images, HEADER, (8,))
    first.append("train", np.zeros((10, 8)))
    first.suspend()
    second = TargetStoreWriter(path, images, {**HEADER, "weights_tag": "other"}, (8,))
    assert second.done("train") == 0
    second.suspend()
    with pytest.raises(DataError, match="fields no store knows: odd"):
        TargetStoreWriter(path, images, {**HEADER, "odd": 1}, (8,))
