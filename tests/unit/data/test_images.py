import hashlib
import json

import pytest
from PIL import Image

from eegrecon.data.images import ImageSet, build_images_json
from eegrecon.errors import DataError


def make(root, names):
    for name in names:
        path = root / "images_set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(path)


def test_things_order_ids_and_hashes(tmp_path):
    make(
        tmp_path,
        [
            "test_images/00001_air_mattress/air_mattress_05s.jpg",
            "training_images/00002_abacus/abacus_02s.jpg",
            "training_images/00002_abacus/abacus_01b.jpg",
            "training_images/00001_aardvark/aardvark_01b.jpg",
        ],
    )
    images = build_images_json(tmp_path)
    rows = json.loads((tmp_path / "images.json").read_text())  # readable with json alone
    assert [row["image_id"] for row in rows] == [
        "train/00001_aardvark/aardvark_01b",
        "train/00002_abacus/abacus_01b",
        "train/00002_abacus/abacus_02s",
        "test/00001_air_mattress/air_mattress_05s",
    ]
    assert set(rows[0]) == {"image_id", "concept", "concept_index", "path", "sha256"}
    assert [row["concept"] for row in rows] == ["aardvark", "abacus", "abacus", "air_mattress"]
    assert [row["concept_index"] for row in rows] == [0, 1, 1, 2]
    assert rows[1]["sha256"] == hashlib.sha256((tmp_path / rows[1]["path"]).read_bytes()).hexdigest()
    assert images.train_index.tolist() == [0, 1, 2]
    assert images.test_index.tolist() == [3]
    assert images.concept_of(3) == "air_mattress"
    assert [record.partition for record in images.records] == ["train", "train", "train", "test"]
    assert images.load(0).size == (4, 4)
    assert images.sha256 == hashlib.sha256((tmp_path / "images.json").read_bytes()).hexdigest()


def test_building_again_leaves_the_file_alone(tiny_set):
    before = (tiny_set / "images.json").stat().st_mtime_ns
    assert build_images_json(tiny_set).sha256 == ImageSet.from_root(tiny_set).sha256
    assert (tiny_set / "images.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["[]", "{}", "[1]", "not json", '[{"image_id": "a"}]'])
def test_a_broken_list_is_one_sentence(tmp_path, text):
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(DataError, match="prepare-data"):
        ImageSet.from_root(tmp_path)


def test_a_missing_set_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match=r"has no images.json: make it with `eegrecon prepare-data`"):
        ImageSet.from_root(tmp_path / "absent")
    with pytest.raises(DataError, match="does not exist"):
        build_images_json(tmp_path)


def test_odd_folders_are_named(tmp_path):
    make(tmp_path, ["training_images/aardvark/a.jpg", "test_images/00001_b/b.jpg"])
    with pytest.raises(DataError, match="not named like 00001_aardvark"):
        build_images_json(tmp_path)


def test_a_broken_picture_names_its_id(own_set):
    images = ImageSet.from_root(own_set)
    (own_set / images.records[2].path).write_bytes(b"no picture")
    with pytest.raises(DataError, match=images.records[2].image_id):
        images.load(2)
