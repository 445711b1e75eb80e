import json
import re

import numpy as np
import pytest

from eegrecon.data import THINGS_EEG2_CHANNELS, ImageSet, TrialStore, TrialStoreWriter, trial_dir
from eegrecon.data.partition import BLOCK, Partition
from eegrecon.errors import DataError
from eegrecon.pocket.forward import CH_NAMES


def edit_header(path, **changes):
    header = json.loads((path / "header.json").read_text())
    header.update(changes)
    (path / "header.json").write_text(json.dumps(header))


def edit_eeg(path, partition, at, value):
    array = np.load(path / f"{partition}_eeg.npy", mmap_mode="r+")
    array[at] = value
    array.flush()


def test_the_63_channels():
    assert len(THINGS_EEG2_CHANNELS) == len(set(THINGS_EEG2_CHANNELS)) == 63
    assert "Fz" not in THINGS_EEG2_CHANNELS
    # The last 17 are Gifford's occipito-parietal ones: everything that starts with O or P.
    assert [i for i, name in enumerate(THINGS_EEG2_CHANNELS) if name[0] in "OP"] == list(range(46, 63))
    assert THINGS_EEG2_CHANNELS == CH_NAMES  # the simulated brain keeps its own copy: layers do not import each other


def test_numpy_and_json_suffice(tiny_set):
    path = trial_dir(tiny_set, 1)
    header = json.loads((path / "header.json").read_text())
    wanted = "ch_names files n_times preprocessing schema set sfreq sources subject tmin unit"
    assert " ".join(sorted(header)) == wanted
    raw = np.load(path / "train_eeg.npy", allow_pickle=False)
    assert raw.dtype == np.float16
    assert raw.shape == (36, 2, 63, 250) == tuple(header["files"]["train_eeg.npy"]["shape"])
    index = np.load(path / "train_image_index.npy", allow_pickle=False)
    store = TrialStore(path, ImageSet.from_root(tiny_set))
    train = store.open("train", verify=True)
    assert np.array_equal(train.eeg, raw)
    assert np.array_equal(train.image_index, index)
    assert np.array_equal(train.session, np.load(path / "train_session.npy"))
    assert train.session.shape == (36, 2)
    assert train.average().dtype == np.float32
    assert np.allclose(train.average(), raw.astype(np.float64).mean(1), atol=1e-6)
    assert np.array_equal(train.read(np.array([3, 1]), np.array([1, 0])), raw[[3, 1], [1, 0]].astype(np.float32))


def test_channels_and_window(tiny_set):
    store = TrialStore(trial_dir(tiny_set, 1))
    part = store.open("test", channels=["Oz", "O1"], window=[0.1, 0.2])
    assert part.shape == (4, 3, 2, 25)
    names = list(THINGS_EEG2_CHANNELS)
    rows = [names.index("Oz"), names.index("O1")]
    assert np.array_equal(part.read(np.arange(4)), np.asarray(part.eeg)[:, :, rows, 25:50].astype(np.float32))
    with pytest.raises(DataError, match="asks for Fz, Iz"):
        store.open("train", channels=["Oz", "Fz", "Iz"])
    with pytest.raises(DataError, match="names a channel twice"):
        store.open("train", channels=["Oz", "Oz"])
    for window in ([-0.1, 0.5], [0.5, 1.1], [0.5, 0.5], [0.5, 0.2]):
        with pytest.raises(DataError, match=r"data\.window"):
            store.open("train", window=window)


def test_blocks_cover_every_row_once(tmp_path):
    eeg = np.random.default_rng(0).normal(size=(2 * BLOCK + 3, 2, 3, 5)).astype(np.float16)
    n = len(eeg)
    part = Partition(eeg, np.arange(n), np.zeros((n, 2)), [0, 1, 2], slice(0, 5), tmp_path, list("abc"))
    rows = np.random.default_rng(1).permutation(n)
    assert np.concatenate([at for at, _, _ in part.blocks(rows)]).tolist() == rows.tolist()
    assert np.allclose(part.average(rows), eeg[rows].astype(np.float64).mean(1), atol=1e-6)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "an infinite value"), (-np.inf, "an infinite")])
def test_bad_values_name_picture_and_channel(own_set, value, kind):
    path, images = trial_dir(own_set, 1), ImageSet.from_root(own_set)
    edit_eeg(path, "train", (7, 1, 62, 100), value)
    store = TrialStore(path, images)
    with pytest.raises(DataError) as caught:
        store.open("train").average()
    text = str(caught.value)
    assert all(part in text for part in (kind, images.records[7].image_id, "'O2'", "repetition 1", "train_eeg.npy"))
    assert store.open("train", channels=["O1"]).average().shape == (36, 1, 250)  # what is not read does not matter


def test_a_truncated_file_is_one_sentence(own_set):
    path = trial_dir(own_set, 1)
    file = path / "train_eeg.npy"
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(size - 1000)
    with pytest.raises(DataError) as caught:
        TrialStore(path).open("train")
    text = str(caught.value)
    assert str(file) in text
    assert f"expected {size} bytes, found {size - 1000}" in text
    assert "prepare-data" in text
    TrialStore(path).open("test")  # the other partition is untouched


def test_a_changed_file_is_found_on_demand(own_set):
    path = trial_dir(own_set, 1)
    edit_eeg(path, "test", (0, 0, 0, 0), 3.0)
    TrialStore(path).open("test")
    with pytest.raises(DataError, match="was changed after it was made"):
        TrialStore(path).open("test", verify=True)


def test_permuted_channels_are_refused(own_set):
    path = trial_dir(own_set, 1)
    names = list(THINGS_EEG2_CHANNELS)
    names[3], names[10] = names[10], names[3]
    edit_header(path, ch_names=names)
    with pytest.raises(DataError, match=r"same 63 names in another order \(position 3 is 'F1', expected 'AF3'\)"):
        TrialStore(path)
    edit_header(path, ch_names=["Fz", *THINGS_EEG2_CHANNELS[1:]])
    with pytest.raises(DataError, match="without Fp1 and with Fz"):
        TrialStore(path)
    edit_header(path, set="other_set")  # another set has other channels
    TrialStore(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "has schema 99"),
        ({"sfreq": "fast"}, "'sfreq' is 'fast'"),
        ({"subject": True}, "'subject' is True"),
        ({"unit": "V"}, "expected one of uV, mvnn"),
        ({"n_times": 100}, "63 channels and 100 samples"),
        ({"sfreq": 0}, "both must be above 0"),
        ({"files": {}}, "lists no train_eeg.npy"),
    ],
)
def test_headers_that_contradict_themselves(own_set, changes, message):
    path = trial_dir(own_set, 1)
    edit_header(path, **changes)
    with pytest.raises(DataError, match=message):
        TrialStore(path)


def test_missing_stores_and_files(own_set, tmp_path):
    with pytest.raises(DataError, match="does not exist: make it with"):
        TrialStore(tmp_path / "absent")
    path = trial_dir(own_set, 1)
    (path / "train_session.npy").unlink()
    with pytest.raises(DataError, match=r"train_session.npy is missing"):
        TrialStore(path).open("train")
    (path / "header.json").unlink()
    with pytest.raises(DataError, match="is unfinished"):
        TrialStore(path)


def test_other_pictures_are_refused(own_set):
    rows = json.loads((own_set / "images.json").read_text())
    rows[0]["sha256"] = "f" * 64
    (own_set / "images.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="another picture list"):
        TrialStore(trial_dir(own_set, 1), ImageSet.from_root(own_set))


def writer(path, images, **kw):
    facts = {
        "set": "other", "subject": 3, "unit": "uV", "sfreq": 100.0, "tmin": 0.0, "n_times": 5, "ch_names": ["A", "B"],
        "preprocessing": {}, "sources": {}, "images": images, "counts": {"train": (3, 2), "test": (1, 4)},
    }  # fmt: skip
    return TrialStoreWriter(path, **{**facts, **kw})


def test_writer_streams_and_finishes_last(tmp_path, tiny_set):
    images, path = ImageSet.from_root(tiny_set), tmp_path / "store"
    eeg = np.random.default_rng(0).normal(size=(3, 2, 2, 5))
    with writer(path, images) as out:
        out.append("train", eeg[:2], np.array([4, 5]), np.zeros((2, 2)))
        assert not (path / "header.json").exists()
        assert not (path / "train_eeg.npy").exists()
        out.append("train", eeg[2:], np.array([6]), np.ones((1, 2)))
        out.append("test", np.zeros((1, 4, 2, 5)), images.test_index[:1], np.zeros((1, 4)))
    part = TrialStore(path, images).open("train", verify=True)
    assert np.array_equal(part.eeg, eeg.astype(np.float16))
    assert part.image_index.tolist() == [4, 5, 6]


def test_writer_leaves_nothing_after_a_failure(tmp_path, tiny_set):
    images, path = ImageSet.from_root(tiny_set), tmp_path / "store"

    def killed():
        with writer(path, images) as out:
            out.append("train", np.zeros((1, 2, 2, 5)), np.array([0]), np.zeros((1, 2)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert list(path.iterdir()) == []
    with pytest.raises(DataError, match="needs 3 rows, but only 1"), writer(path, images) as out:
        out.append("train", np.zeros((1, 2, 2, 5)), np.array([0]), np.zeros((1, 2)))
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, 1e6])  # 1e6 is beyond float16
def test_writer_refuses_what_it_cannot_store(tmp_path, tiny_set, value):
    block = np.zeros((1, 2, 2, 5))
    block[0, 1, 0, 2] = value
    with (
        pytest.raises(DataError, match=re.escape("Row 0")),
        writer(tmp_path / "store", ImageSet.from_root(tiny_set)) as out,
    ):
        out.append("train", block, np.array([0]), np.zeros((1, 2)))


def test_writer_checks_the_channels_of_known_sets(tmp_path, tiny_set):
    with pytest.raises(DataError, match="must be the 63 of THINGS-EEG2"):
        writer(tmp_path / "store", ImageSet.from_root(tiny_set), set="pocket")
