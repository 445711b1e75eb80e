"""The readers of the preprocessed THINGS-EEG2 layouts, on files that the original libraries wrote."""

from pathlib import Path

import numpy as np
import pytest

from eegrecon.data import THINGS_EEG2_CHANNELS, build_images_json
from eegrecon.data.things_eeg2 import original, preprocessed, pt
from eegrecon.errors import DataError
from tests.builders_layouts import TIMES, trials, write_original, write_pictures, write_preprocessed, write_pt


@pytest.fixture
def images(tmp_path):
    return write_pictures(tmp_path / "things_eeg2")


def opened(build, images, path, **args):
    return build(subject=1, images=images, work=Path(path) / "work", path=str(path), **args)


def whole(source, side):
    n = source.counts()[side][0]
    return np.concatenate([source.read(side, start, min(start + 2, n)) for start in range(0, n, 2)])


def test_preprocessed(tmp_path, images):
    data = trials()
    write_preprocessed(tmp_path / "files/sub-01", data)
    source = opened(preprocessed, images, tmp_path / "files")
    assert (source.unit, source.sfreq, source.tmin, source.n_times) == ("mvnn", 250.0, 0.0, 250)
    assert source.ch_names == THINGS_EEG2_CHANNELS
    assert source.counts() == {"train": (6, 4), "test": (2, 5)}
    assert source.image_index("train").tolist() == images.train_index.tolist()
    assert source.image_index("test").tolist() == images.test_index.tolist()
    for side in ("train", "test"):
        assert np.array_equal(whole(source, side), data[side].astype(np.float32))
        assert source.read(side, 0, 1).dtype == np.float32
        assert not source.session(side).any()
        assert source.session(side).shape == data[side].shape[:2]
    files = source.sources
    assert [files[name]["bytes"] for name in sorted(files)] == [
        path.stat().st_size for path in sorted((tmp_path / "files/sub-01").iterdir())
    ]


def test_the_fingerprint_sees_any_change_of_a_small_file(tmp_path, images):
    write_preprocessed(tmp_path / "files/sub-01", trials())
    before = opened(preprocessed, images, tmp_path / "files").sources
    path = tmp_path / "files/sub-01/preprocessed_eeg_training.npy"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    after = opened(preprocessed, images, tmp_path / "files").sources
    assert [name for name in before if before[name] != after[name]] == [path.name]


def test_original(tmp_path, images):
    data = trials(chans=17, samples=100)
    write_original(tmp_path / "files/sub-01", data)
    source = opened(original, images, tmp_path / "files")
    assert (source.unit, source.sfreq, source.tmin, source.n_times) == ("mvnn", 100.0, -0.2, 100)
    assert source.ch_names == THINGS_EEG2_CHANNELS[-17:]
    assert np.array_equal(whole(source, "train"), data["train"].astype(np.float32))


# `ch_names` of the authors' files, and the last 17 of the 63.
PUBLISHED = ["Pz", "P3", "P7", "O1", "Oz", "O2", "P4", "P8", "P1", "P5", "PO7", "PO3", "POz", "PO4", "PO8", "P6", "P2"]
STORED = ["P7", "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8", "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2"]


def test_original_channels_come_into_the_stores_order(tmp_path, images):
    """Every channel's values are its own number, by which its name is known wherever it lands."""
    number = {name: 10.0 * i for i, name in enumerate(sorted(PUBLISHED), start=1)}
    data = trials(chans=17, samples=100)
    for eeg in data.values():
        eeg += np.array([number[name] for name in PUBLISHED])[:, None]
    write_original(tmp_path / "files/sub-01", data, PUBLISHED)
    source = opened(original, images, tmp_path / "files")
    assert list(source.ch_names) == STORED
    for side in ("train", "test"):
        means = whole(source, side).mean(axis=(0, 1, 3))
        assert [min(number, key=lambda name, mean=mean: abs(number[name] - mean)) for mean in means] == STORED
    assert np.array_equal(source.read("train", 2, 4)[1, 3, 4], data["train"][3, 3, 0].astype(np.float32))  # Pz
    assert source.preprocessing["ch_names_in_files"] == PUBLISHED
    assert source.preprocessing["channels"] == f"reordered to {', '.join(STORED)}"
    write_original(tmp_path / "files/sub-01", data, STORED)
    plain = opened(original, images, tmp_path / "files")
    assert np.array_equal(plain.read("train", 0, 1), data["train"][:1].astype(np.float32))
    assert "channels" not in plain.preprocessing


def test_original_in_any_other_order_is_refused(tmp_path, images):
    data, other = trials(chans=17, samples=100), swapped(PUBLISHED)
    write_original(tmp_path / "files/sub-01", data, other)
    with pytest.raises(
        DataError, match=r"same 17 names in another order .*: put data and names in order, or in the pub"
    ):
        opened(original, images, tmp_path / "files")
    write_original(tmp_path / "files/sub-01", {"train": data["train"]}, STORED)
    write_original(tmp_path / "files/sub-01", {"test": data["test"]}, PUBLISHED)
    with pytest.raises(DataError, match="differ in their channels"):
        opened(original, images, tmp_path / "files")
    write_preprocessed(  # the other readers know the store's order alone
        tmp_path / "files/sub-01", data, ch_names=PUBLISHED, times=np.arange(100) / 100 - 0.2
    )
    with pytest.raises(DataError, match="same 17 names in another order"):
        opened(preprocessed, images, tmp_path / "files", sfreq=100.0)


def test_fortran_order(tmp_path, images):
    data = trials()
    write_preprocessed(tmp_path / "files/sub-01", {side: np.asfortranarray(eeg) for side, eeg in data.items()})
    source = opened(preprocessed, images, tmp_path / "files")
    assert source.recordings["train"].data.fortran  # so it is read where it lies
    for side in ("train", "test"):
        assert np.array_equal(whole(source, side), data[side].astype(np.float32))


def test_pt_names_its_pictures_and_sessions(tmp_path, images):
    data = trials()
    order = [3, 0, 5, 1, 4, 2]
    write_pt(tmp_path / "files/sub-01", data, images, order)
    source = opened(pt, images, tmp_path / "files")
    assert (source.unit, source.sfreq, source.tmin, source.n_times) == ("mvnn", 250.0, 0.0, 250)
    assert source.image_index("train").tolist() == order
    assert source.image_index("test").tolist() == [6, 7]
    assert source.session("train").tolist() == [[1, 1, 2, 2]] * 6  # the file counts from 0
    assert source.session("train").dtype == np.int16
    assert np.array_equal(whole(source, "train"), data["train"].astype(np.float16).astype(np.float32))


def swapped(names):
    names = list(names)
    names[3], names[10] = names[10], names[3]
    return names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch_names": swapped(THINGS_EEG2_CHANNELS)}, r"same 63 names in another order \(position 3 is 'F1', expected"),
        ({"ch_names": ["Fz", *THINGS_EEG2_CHANNELS[1:]]}, "without Fp1 and with Fz beyond the 63"),
        ({"ch_names": ["AF7", *THINGS_EEG2_CHANNELS[1:]]}, "'AF7' is named twice"),
        ({"ch_names": list(THINGS_EEG2_CHANNELS[:60])}, "names 60 channels, but preprocessed_eeg_data has 63"),
        ({"ch_names": 63}, "ch_names in .* must be a list of names, but it is int"),
        ({"times": np.arange(120) / 100 - 0.2}, "must be 250 or more numbers in seconds"),
        ({"times": np.arange(250) / 100}, "was sampled at 100 Hz, expected 250 Hz.*source.args.sfreq=100"),
        ({"times": np.arange(280) / 250 - 0.2}, "280 times for 250 samples.*would begin at -0.08 s"),
        ({"times": TIMES**2}, "must rise in even steps"),
        ({"times": np.full(300, np.nan)}, "must rise in even steps"),
        ({"times": "early"}, "must be 250 or more numbers"),
        ({"preprocessed_eeg_data": np.zeros((6, 4, 63 * 250))}, r"shape \(6, 4, 15750\), expected \(pictures,"),
        ({"preprocessed_eeg_data": np.zeros((0, 4, 63, 250))}, "none of them 0"),
        ({"preprocessed_eeg_data": [1, 2]}, "shape list of 2, expected"),
        ({"preprocessed_eeg_data": np.zeros((6, 4, 63, 250), np.int32)}, "is int32, expected float16"),
        ({"preprocessed_eeg_data": np.zeros((6, 4, 63, 250), complex)}, "is complex128, expected float16"),
        ({"preprocessed_eeg_data": np.zeros((5, 4, 63, 250))}, "trials for 5 train pictures, but .* holds 6"),
    ],
)
def test_damage_is_one_sentence(tmp_path, images, changes, message):
    write_preprocessed(tmp_path / "files/sub-01", trials(), **changes)
    with pytest.raises(DataError, match=message) as caught:
        opened(preprocessed, images, tmp_path / "files")
    assert "preprocessed_eeg_training.npy" in str(caught.value)


def test_another_layout_is_named_by_its_keys(tmp_path, images):
    write_pt(tmp_path / "files/sub-01", trials(), images, list(range(6)))
    home = tmp_path / "files/sub-01"
    for old, new in (("train.pt", "preprocessed_eeg_training.npy"), ("test.pt", "preprocessed_eeg_test.npy")):
        (home / old).rename(home / new)
    with pytest.raises(DataError, match=r"must hold a dict with preprocessed_eeg_data.*keys eeg, label, img"):
        opened(preprocessed, images, tmp_path / "files")


def test_files_that_contradict_each_other(tmp_path, images):
    data = trials()
    write_preprocessed(tmp_path / "files/sub-01", data)
    test = data["test"][..., :200]
    write_preprocessed(tmp_path / "files/sub-01", {"test": test}, times=np.arange(200) / 250)
    with pytest.raises(DataError, match=r"differ in their samples \(250 and 200\)"):
        opened(preprocessed, images, tmp_path / "files")


def test_missing_subjects_files_and_folders(tmp_path, images):
    with pytest.raises(DataError, match=r"The folder .*files does not exist.*sub-01/preprocessed_eeg_training.npy"):
        opened(preprocessed, images, tmp_path / "files")
    write_preprocessed(tmp_path / "files/sub-03", trials())
    with pytest.raises(DataError, match=r"sub-01 does not exist.*\(there: sub-03\)"):
        opened(preprocessed, images, tmp_path / "files")
    (tmp_path / "files/sub-03").rename(tmp_path / "files/sub-01")
    (tmp_path / "files/sub-01/preprocessed_eeg_test.npy").unlink()
    with pytest.raises(DataError, match=r"preprocessed_eeg_test.npy does not exist"):
        opened(preprocessed, images, tmp_path / "files")


def test_a_missing_picture_is_traced_to_its_concept(tmp_path):
    images = write_pictures(tmp_path / "set", exemplars=3)
    (tmp_path / "set/images_set/training_images/00002_bat1/bat1_02s.jpg").unlink()
    write_preprocessed(tmp_path / "files/sub-01", trials(n_train=9))
    assert len(images.train_index) == 9
    with pytest.raises(DataError, match=r"holds 8 \(00002_bat1 holds 2 and most hold 3\)"):
        opened(preprocessed, build_images_json(tmp_path / "set"), tmp_path / "files")


def names(images, **at):
    table = np.array([[record.path.removeprefix("images_set/")] * 4 for record in images.records[:6]], dtype="<U80")
    for cell, text in at.items():
        row, column = cell.strip("r").split("c")
        table[int(row), int(column)] = text
    return table


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ({"r2c1": "x/00001_aardvark/aardvark_01b.jpg"}, r"Row 2 of .* names 2 pictures"),
        ({f"r2c{c}": "x/00009_yak/yak_01b.jpg" for c in range(4)}, "Row 2 of .* shows x/00009_yak/yak_01b.jpg, which"),
        ({f"r2c{c}": "x/00001_aardvark/aardvark_01b.jpg" for c in range(4)}, "Rows 0 and 2 of .* both show"),
    ],
)
def test_pt_with_wrong_picture_names(tmp_path, images, at, message):
    write_pt(tmp_path / "files/sub-01", trials(), images, list(range(6)), img=names(images, **at))
    with pytest.raises(DataError, match=message):
        opened(pt, images, tmp_path / "files")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img": None}, "has no img"),
        ({"img": np.zeros((6, 4))}, r"img in .* must have one entry for each trial.*float64"),
        ({"session": np.zeros((6, 3))}, r"session in .* one entry for each trial, \(6, 4\)"),
        ({"session": np.full((6, 4), 0.5)}, "must hold whole numbers from 0, but it holds 0.5"),
    ],
)
def test_pt_with_damaged_tables(tmp_path, images, changes, message):
    write_pt(tmp_path / "files/sub-01", trials(), images, list(range(6)), **changes)
    with pytest.raises(DataError, match=message):
        opened(pt, images, tmp_path / "files")


def test_pt_without_sessions_leaves_them_unknown(tmp_path, images):
    write_pt(tmp_path / "files/sub-01", trials(), images, list(range(6)), session=None)
    assert not opened(pt, images, tmp_path / "files").session("train").any()


def test_pt_of_fewer_pictures_than_the_set_has(tmp_path, images):
    data = trials()
    write_pt(tmp_path / "files/sub-01", {**data, "train": data["train"][:5]}, images, list(range(5)))
    with pytest.raises(DataError, match=r"no trial shows train/00003_bat2/bat2_02s"):
        opened(pt, images, tmp_path / "files")
