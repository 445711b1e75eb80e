"""The readers of THINGS-MEG, on files that pickle and MNE wrote."""

import mne
import numpy as np
import pytest

from eegrecon.data.things_meg import CATCH, meg_fif, meg_pkl
from eegrecon.errors import DataError
from tests.builders_layouts import (
    TEST_CONCEPTS,
    TRAIN_CONCEPTS,
    sensors,
    trials,
    write_meg_pkl,
    write_pictures,
)

CHANS, EXEMPLARS, REPETITIONS = 9, 2, 3
ALL = sorted((*TRAIN_CONCEPTS, *TEST_CONCEPTS))  # THINGS' numbers follow the concepts in alphabetical order
# Every concept has three pictures here; the test picture is its third, training pictures are the first two.
NUMBERS = {(concept, exemplar): 3 * i + exemplar for i, concept in enumerate(ALL) for exemplar in (1, 2, 3)}


@pytest.fixture
def images(tmp_path):
    return write_pictures(tmp_path / "things_meg", exemplars=EXEMPLARS, test_exemplar=3)


def shown():
    """(event, set's row, repetition) in a shuffled order, with catch trials and the test concepts' other pictures."""
    rows = [(NUMBERS[concept, k], 2 * i + k - 1, 0) for i, concept in enumerate(TRAIN_CONCEPTS) for k in (1, 2)]
    for i, concept in enumerate(TEST_CONCEPTS):
        rows += [(NUMBERS[concept, 3], 6 + i, repetition) for repetition in range(REPETITIONS)]
        rows += [(NUMBERS[concept, k], -1, 0) for k in (1, 2)]
    rows += [(CATCH, -1, 0)] * 3
    return [rows[i] for i in np.random.default_rng(3).permutation(len(rows))]


def write_fif(root, events=None, scale=1.0, paths=True, tmin=-0.1):
    """As step1_preprocessing.py leaves them: 281 samples from -0.1 s, a reference channel beside the sensors."""
    plan = shown()
    data = np.random.default_rng(1).standard_normal((len(plan), CHANS + 1, 281)) * scale
    info = mne.create_info([*sensors(CHANS), "BG1-1609"], 200.0, ["mag"] * CHANS + ["misc"])
    numbers = [event for event, _, _ in plan] if events is None else events
    table = np.column_stack([1800 * np.arange(1, len(plan) + 1), np.zeros(len(plan)), numbers]).astype(int)
    home = root / "derivatives/preprocessed"
    home.mkdir(parents=True)
    made = mne.EpochsArray(data, info, table, tmin=tmin, verbose="ERROR")
    made.save(home / "preprocessed_P2-epo.fif", verbose="ERROR")
    if paths:
        lines = [f"images/{c}/{c}_{k:02d}{'b' if k == 1 else 's'}.jpg" for c in ALL for k in (1, 2, 3)]
        (root / "image_paths.csv").write_text("\n".join(lines) + "\n")
    return plan, data[:, :CHANS, 20:221]


def opened(images, root, **args):
    return meg_fif(subject=2, images=images, work=root / "work", path=str(root), **args)


def test_epochs_are_found_by_their_events(tmp_path, images):
    plan, data = write_fif(tmp_path / "ds004212")
    source = opened(images, tmp_path / "ds004212")
    assert (source.unit, source.sfreq, source.tmin, source.n_times) == ("zscore", 200.0, 0.0, 201)
    assert source.ch_names == tuple(sensors(CHANS))
    assert source.counts() == {"train": (6, 1), "test": (2, 3)}
    train, test = source.read("train", 0, 6), source.read("test", 0, 2)
    for row in range(6):
        place = next(i for i, item in enumerate(plan) if item[1] == row)
        np.testing.assert_allclose(train[row, 0], data[place], atol=1e-6)  # the file holds float32
    for row in range(2):
        places = [i for i, item in enumerate(plan) if item[1] == 6 + row]
        np.testing.assert_allclose(test[row], data[places], atol=1e-6)
    assert np.array_equal(source.read("test", 1, 2)[0], test[1])
    assert source.image_index("train").tolist() == list(range(6))
    assert source.image_index("test").tolist() == [6, 7]
    assert not source.session("test").any()
    assert sorted(source.sources) == ["image_paths.csv", "preprocessed_P2-epo.fif"]


def test_epochs_in_tesla_become_femtotesla(tmp_path, images):
    plan, data = write_fif(tmp_path / "ds", scale=1e-13)
    source = opened(images, tmp_path / "ds")
    place = next(i for i, item in enumerate(plan) if item[1] == 0)
    assert source.unit == "fT"
    np.testing.assert_allclose(source.read("train", 0, 1)[0, 0], data[place] * 1e15, rtol=1e-4, atol=1e-3)


def test_sessions_come_from_the_table_beside_the_epochs(tmp_path, images):
    plan, _ = write_fif(tmp_path / "ds")
    (tmp_path / "ds/sourcedata").mkdir()
    lines = [f"{'catch' if e == CATCH else 'exp'},{1 + i // 5}" for i, (e, _, _) in enumerate(plan)]
    (tmp_path / "ds/sourcedata/sample_attributes_P2.csv").write_text("trial_type,session_nr\n" + "\n".join(lines))
    session = opened(images, tmp_path / "ds").session("train")
    assert [int(session[row, 0]) for row in range(6)] == [
        1 + next(i for i, item in enumerate(plan) if item[1] == row) // 5 for row in range(6)
    ]


def test_a_window_of_the_epochs(tmp_path, images):
    write_fif(tmp_path / "ds")
    source = opened(images, tmp_path / "ds", tmin=-0.1, tmax=1.3)
    assert (source.tmin, source.n_times) == (-0.1, 281)
    with pytest.raises(DataError, match=r"0 samples from 2 to 3 s.*times go from -0.1 to 1.3 s"):
        opened(images, tmp_path / "ds", tmin=2.0, tmax=3.0)


def changed(*pairs):
    events = [event for event, _, _ in shown()]
    for old, new in pairs:
        events[events.index(old)] = new
    return events


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (changed((NUMBERS["bat1", 1], 77)), "has the event 77, expected a picture's number from 1 to 15"),
        (changed((NUMBERS["bat1", 1], NUMBERS["bat1", 3])), "shows bat1_03s, which is in neither training_images"),
        (changed((NUMBERS["bat1", 1], CATCH)), "train picture train/00002_bat1/bat1_01b 0 times"),
        (changed((NUMBERS["zebra", 3], CATCH)), "test picture test/00002_zebra/zebra_03s 2 times"),
    ],
)
def test_events_that_do_not_fit(tmp_path, images, events, message):
    write_fif(tmp_path / "ds", events=events)
    with pytest.raises(DataError, match=message):
        opened(images, tmp_path / "ds")


def test_missing_files_are_named(tmp_path, images):
    with pytest.raises(DataError, match=r"preprocessed_P2-epo.fif is neither in .*\(there: none\)"):
        opened(images, tmp_path / "ds")
    write_fif(tmp_path / "ds", paths=False)
    with pytest.raises(DataError, match=r"image_paths.csv, which says .*source.args.tables"):
        opened(images, tmp_path / "ds")
    (tmp_path / "ds/image_paths.csv").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"must list pictures such as images/aardvark"):
        opened(images, tmp_path / "ds")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_truncated_epochs(tmp_path, images, share):
    write_fif(tmp_path / "ds")
    path = tmp_path / "ds/derivatives/preprocessed/preprocessed_P2-epo.fif"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"get (the file|it) again"):
        opened(images, tmp_path / "ds").read("train", 0, 6)


def test_pickles(tmp_path, images):
    data = trials(repetitions=(1, 3), chans=CHANS, samples=201)
    write_meg_pkl(tmp_path / "files/sub-02", data, EXEMPLARS)
    source = meg_pkl(subject=2, images=images, work=tmp_path, path=str(tmp_path / "files"))
    assert (source.unit, source.sfreq, source.tmin, source.n_times) == ("zscore", 200.0, 0.0, 201)
    assert source.counts() == {"train": (6, 1), "test": (2, 3)}
    assert np.array_equal(source.read("train", 1, 5), data["train"][1:5].astype(np.float32))
    assert np.array_equal(source.read("test", 0, 2), data["test"].astype(np.float32))
    assert source.image_index("test").tolist() == [6, 7]


def test_pickles_too_large_to_hold_are_read_in_place(tmp_path, images):
    data = trials(repetitions=(1, 3), chans=271, samples=201)  # 2.6 MB
    write_meg_pkl(tmp_path / "files/sub-02", data, EXEMPLARS)
    source = meg_pkl(subject=2, images=images, work=tmp_path, path=str(tmp_path / "files"))
    assert not isinstance(source.recordings["train"].data, np.ndarray)
    assert np.array_equal(source.read("train", 1, 5), data["train"][1:5].astype(np.float32))
    assert np.array_equal(source.read("test", 1, 2), data["test"][1:].astype(np.float32))
