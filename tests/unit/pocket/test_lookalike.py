"""Look-alike files, read back as the community reads them (pickles that we wrote ourselves a moment ago)."""

import csv
import os
import pickle
from collections import Counter

import mne
import numpy as np
import pytest
import torch

from eegrecon.errors import ConfigError, DataError
from eegrecon.pocket import lookalike
from eegrecon.pocket.forward import CH_NAMES
from eegrecon.pocket.lookalike import LAYOUTS, LookAlikeSet, NoiseSignals, raw, write_look_alike
from eegrecon.pocket.lookalike.eeg import sessions
from eegrecon.pocket.lookalike.features import write_features
from eegrecon.pocket.lookalike.meg import CATCH
from eegrecon.pocket.lookalike.pictures import named, render_pictures
from eegrecon.pocket.lookalike.signals import epochs, resample, whitener

EEG, MEG = LookAlikeSet(3, 2, 2), LookAlikeSet(3, 2, 4, meg=True)
REPETITIONS = {"train": 4, "test": 8}
SIGNALS = NoiseSignals(1, 0)
RECORDED = ["Pz", "P3", "P7", "O1", "Oz", "O2", "P4", "P8", "P1", "P5", "PO7", "PO3", "POz", "PO4", "PO8", "P6", "P2"]
TRUE = {"train": SIGNALS.trials(range(6), 4), "test": SIGNALS.trials([6, 7], 8)}


def make(layout, tmp_path, **options):
    meg = LAYOUTS[layout].meg
    repetitions = {"train": 1, "test": 12} if meg else REPETITIONS
    return write_look_alike(layout, tmp_path, MEG if meg else EEG, **({"repetitions": repetitions} | options))


def test_noise_depends_on_its_numbers_alone():
    one = SIGNALS.trials([5], 1, first_repetition=3)[0, 0]
    np.testing.assert_array_equal(one, TRUE["train"][5, 3])
    assert not np.array_equal(one, NoiseSignals(2, 0).trials([5], 1, 3)[0, 0])
    assert TRUE["train"].std() == pytest.approx(7.3, rel=0.01)


def test_preprocessed(tmp_path):
    files = make("preprocessed", tmp_path)
    assert [f.relative_to(tmp_path).as_posix() for f in files] == [
        "Preprocessed_data_250Hz/sub-01/preprocessed_eeg_training.npy",
        "Preprocessed_data_250Hz/sub-01/preprocessed_eeg_test.npy",
    ]
    white = whitener(SIGNALS, range(6), 4)
    for file, side in zip(files, TRUE, strict=True):
        loaded = np.load(file, allow_pickle=True)  # a bare pickle: the dict itself, no .item()
        assert list(loaded) == ["preprocessed_eeg_data", "ch_names", "times"]
        assert loaded["ch_names"] == list(CH_NAMES)
        assert loaded["times"].shape == (300,)
        assert (loaded["times"][0], loaded["times"][50], loaded["times"][-1]) == (-0.2, 0.0, pytest.approx(0.996))
        data = loaded["preprocessed_eeg_data"]
        assert data.dtype == np.float64
        np.testing.assert_allclose(data, np.einsum("cd,nrdt->nrct", white, TRUE[side]), rtol=0, atol=1e-5)
        # The size is that of Python's own pickle, less one letter: numpy 1's "core" is numpy 2's "_core".
        assert file.stat().st_size == len(pickle.dumps(loaded, protocol=4)) - 1
    train = np.load(files[0], allow_pickle=True)["preprocessed_eeg_data"]
    covariance = np.mean([np.cov(trial) for trial in train.reshape(-1, 63, 250)], axis=0)
    np.testing.assert_allclose(covariance, np.eye(63), atol=1e-6)


def test_original(tmp_path):
    files = make("original", tmp_path)
    white = whitener(SIGNALS, range(6), 4)
    for file, side in zip(files, TRUE, strict=True):
        loaded = np.load(file, allow_pickle=True).item()
        assert loaded["ch_names"] == RECORDED
        np.testing.assert_allclose(loaded["times"], np.arange(-20, 80) / 100, atol=1e-12)
        data = loaded["preprocessed_eeg_data"]
        assert (data.shape, data.dtype) == ((*TRUE[side].shape[:2], 17, 100), np.float64)
        # An independent way down to 100 Hz: MNE on epochs that begin 200 ms before onset.
        trial = white @ TRUE[side][0, 0].astype(np.float64)
        before = trial[:, :-51:-1] - trial[:, :-51:-1].mean(axis=1, keepdims=True)
        slow = mne.filter.resample(np.hstack([before, trial]), up=100, down=250, pad="wrap", npad=0, verbose="ERROR")
        for row, name in zip(data[0, 0], RECORDED, strict=True):
            np.testing.assert_allclose(row, slow[CH_NAMES.index(name), :100], atol=1e-9)


# What numpy 2 says of every file that numpy 1 pickled with protocol 5.
@pytest.mark.filterwarnings("ignore:numpy.core.numeric is deprecated:DeprecationWarning")
def test_pt(tmp_path):
    files = make("pt", tmp_path)
    assert [f.name for f in files] == ["train.pt", "test.pt"]
    white = whitener(SIGNALS, range(6), 4)
    paths = [path for path, _, _ in EEG.plan()]
    for file, side in zip(files, TRUE, strict=True):
        loaded = torch.load(file, weights_only=False)
        assert list(loaded) == ["eeg", "label", "img", "text", "session", "ch_names", "times"]
        n, reps = TRUE[side].shape[:2]
        assert (loaded["eeg"].dtype, loaded["eeg"].shape) == (np.float16, (n, reps, 63, 250))
        np.testing.assert_allclose(
            loaded["eeg"].astype(float), np.einsum("cd,nrdt->nrct", white, TRUE[side]), atol=3e-3
        )
        for key in ("label", "img", "text", "session"):
            assert loaded[key].shape == (n, reps)
        rows = range(6) if side == "train" else (6, 7)
        assert [img.split("/", 1)[1] for img in loaded["img"][:, 0]] == [paths[r].split("/", 1)[1] for r in rows]
        assert loaded["label"][:, -1].tolist() == ([0, 0, 1, 1, 2, 2] if side == "train" else [0, 1])
        named_so = zip(loaded["img"][:, 0], loaded["text"][:, 0], strict=True)
        assert all(img.endswith(f"/{text}_{img[-7:]}") for img, text in named_so)
        assert set(loaded["session"].ravel()) <= {0.0, 1.0, 2.0, 3.0}
        assert loaded["times"].shape == (300,)


def test_sessions_are_dealt_as_in_the_experiment():
    train = sessions(100, 4, "train")
    assert np.all((train[:, :2] <= 2) & (train[:, 2:] >= 3))
    assert np.all((train[:, 0] == train[:, 1]) & (train[:, 2] == train[:, 3]))  # two repetitions a session
    assert Counter(train.ravel().tolist()) == {1: 100, 2: 100, 3: 100, 4: 100}
    assert Counter(map(tuple, sessions(3, 80, "test").tolist())) == {(1,) * 20 + (2,) * 20 + (3,) * 20 + (4,) * 20: 3}


def recording(file):
    loaded = np.load(file, allow_pickle=True).item()
    assert list(loaded) == ["raw_eeg_data", "ch_names", "ch_types", "sfreq", "highpass", "lowpass"]
    assert (loaded["sfreq"], loaded["highpass"], loaded["lowpass"]) == (1000, 0.01, 100)
    assert loaded["raw_eeg_data"].dtype == np.float64
    info = mne.create_info(loaded["ch_names"], loaded["sfreq"], loaded["ch_types"], verbose="ERROR")
    data = mne.io.RawArray(loaded["raw_eeg_data"], info, verbose="ERROR")
    return data, mne.find_events(data, stim_channel="stim", verbose="ERROR")


def test_raw_gives_back_what_was_put_in(tmp_path):
    files = make("raw", tmp_path)
    assert len(files) == 8
    assert files[1].relative_to(tmp_path).as_posix() == "Raw_data/sub-01/ses-01/raw_eeg_test.npy"
    found = {side: Counter() for side in TRUE}
    for file in files:
        side = "train" if "training" in file.name else "test"
        session = int(file.parent.name[-2:])
        data, events = recording(file)
        # Picking by pattern, as the original preprocessing does, gives the 17 channels in the order of its files.
        picked = [data.ch_names[i] for i in mne.pick_channels_regexp(data.ch_names, "^O *|^P *")]
        assert picked == RECORDED
        assert data.ch_names[:63] != list(CH_NAMES)
        assert (events[:, 2] == 99999).sum() >= 1
        events = events[events[:, 2] != 99999]
        made = mne.Epochs(data.pick(list(CH_NAMES)), events, tmin=-0.2, tmax=1.0, preload=True, verbose="ERROR")
        assert made.times[200] == 0
        got = made.get_data()[:, :, 200:1200:4] * 1e6  # uV at 250 Hz: interpolation keeps every old sample
        for trial, code in zip(got, events[:, 2], strict=True):
            errors = [np.abs(trial - true).max() for true in TRUE[side][code - 1]]
            best = int(np.argmin(errors))
            assert errors[best] < 1.0  # of 7.3 uV noise: the mean of 201 fast samples is not that of 50 slow ones
            assert sessions(len(TRUE[side]), REPETITIONS[side], side)[code - 1, best] == session
            found[side][code, best] += 1
    for side, true in TRUE.items():  # every trial once
        assert found[side] == {(row + 1, rep): 1 for row in range(len(true)) for rep in range(true.shape[1])}


def test_raw_does_not_depend_on_the_block_and_adds_up_in_a_rush(tmp_path, monkeypatch):
    slow = [file.read_bytes() for file in make("raw", tmp_path / "a")[:2]]
    monkeypatch.setattr(raw._Recording, "block", 1000)
    assert [file.read_bytes() for file in make("raw", tmp_path / "b")[:2]] == slow
    fast, events = recording(make("raw", tmp_path / "c", onset_gap=0.2)[0])
    assert set(np.diff(events[:, 0])) == {200}
    order = raw.presentation(EEG, REPETITIONS, "train", 1, 0)
    assert events[:, 2].tolist() == [99999 if row < 0 else row + 1 for row, _ in order]
    expected = np.zeros((63, fast.n_times))
    for place, (row, rep) in enumerate(order):
        if row >= 0:
            start = 700 + 200 * place - 200
            expected[:, start : start + 1300] += resample(epochs(TRUE["train"][row, rep].astype(float), after=25), 1000)
    np.testing.assert_allclose(fast.get_data(picks=list(CH_NAMES)) * 1e6, expected, atol=1e-9)


def test_meg_files_tell_the_same_trials_when_read_by_the_authors_recipe(tmp_path):
    train_file, test_file = make("meg_pkl", tmp_path)
    fif, attributes, concept_index, paths = make("meg_fif", tmp_path)
    assert fif.relative_to(tmp_path).as_posix() == "derivatives/preprocessed/preprocessed_P1-epo.fif"
    # atm.md 1.6: crop, sort by event, drop catch trials; test events occur 12 times; drop the test concepts' others.
    made = mne.read_epochs(fif, verbose="ERROR")
    assert (len(made.times), made.times[0], made.times[-1]) == (281, -0.1, 1.3)
    made.crop(0, 1.0)
    made = made[np.argsort(made.events[:, 2], kind="stable")]
    assert (made.events[:, 2] == CATCH).any()
    made = made[made.events[:, 2] != CATCH]
    ids, counts = np.unique(made.events[:, 2], return_counts=True)
    test_ids = ids[counts == 12]
    concept = [int(line) for line in concept_index.read_text().split()]
    test_concepts = {concept[i - 1] for i in test_ids}
    is_test = np.isin(made.events[:, 2], test_ids)
    keep = [not t and concept[e - 1] not in test_concepts for t, e in zip(is_test, made.events[:, 2], strict=True)]
    assert (len(test_ids), is_test.sum(), sum(keep)) == (2, 24, 12)
    assert len(made) == 24 + 12 + 2 * 4  # and the test concepts' other pictures
    with train_file.open("rb") as file:
        train = pickle.load(file)
    with test_file.open("rb") as file:
        test = pickle.load(file)
    assert list(train) == ["meg_data", "ch_names", "times"]
    assert (train["meg_data"].shape, train["meg_data"].dtype) == ((3, 4, 1, 271, 201), np.float64)
    assert test["meg_data"].shape == (2, 1, 12, 271, 201)
    assert train["ch_names"] == made.ch_names
    assert len(set(made.ch_names)) == 271
    np.testing.assert_allclose(train["times"], made.times, atol=1e-12)
    data = made.get_data()
    np.testing.assert_allclose(data[keep], train["meg_data"].reshape(-1, 271, 201), rtol=1e-6, atol=1e-6)
    for row in range(2):  # the order of repetitions is that of the recording
        mine = data[made.events[:, 2] == test_ids[row]]
        distance = np.abs(mine[:, None] - test["meg_data"][row, 0][None]).max(axis=(2, 3))
        assert sorted(distance.argmin(axis=1)) == list(range(12))
        assert distance.min(axis=1).max() < 1e-5
    assert 0.5 < data.std() < 2  # z-scores, not T or fT
    # The events lead to the pictures' names, through the list and through the attributes.
    names = [line.rsplit("/", 1)[1] for line in paths.read_text().split()]
    assert len(names) == len(concept) == 3 * 4 + 2 * 5
    order = [(name.rsplit("_", 1)[0], name) for name in names]
    assert order == sorted(order)
    assert concept == sorted(concept)
    plan = [path.rsplit("/", 1)[1] for path, _, _ in MEG.plan()]
    assert [names[e - 1] for e in made.events[keep, 2]] == plan[:12]
    assert [names[e - 1] for e in test_ids] == plan[12:]
    with attributes.open() as file:
        table = list(csv.DictReader(file))
    again = mne.read_epochs(fif, verbose="ERROR")
    assert [row["things_image_nr"] or str(CATCH) for row in table] == [str(e) for e in again.events[:, 2]]
    assert Counter(row["trial_type"] for row in table) == {"exp": 20, "test": 24, "catch": 4}


def test_full_size_meg_shapes():
    whole = LookAlikeSet(1654, 200, 12, meg=True)
    assert lookalike.bytes_of("meg_pkl", whole, {"train": 1, "test": 12}) == pytest.approx(8.65e9 + 1.05e9, rel=0.001)
    assert (whole.n_train, whole.n_test) == (19848, 200)


def test_concepts_beyond_the_drawings_have_names_of_their_own():
    found = named("train", 1654)
    names = [concept.name for concept in found]
    assert names == sorted(set(names))
    assert len(names) == 1654
    assert not set(names) & {concept.name for concept in named("test", 200)}
    assert max(Counter(concept.drawing.concept for concept in found).values()) == 4  # 1654 / 544
    assert len({(concept.drawing.concept, concept.reuse) for concept in found}) == 1654


def test_pictures_lie_as_in_things(tmp_path):
    root = tmp_path / "images_set"
    pictures = LookAlikeSet(545, 1, 1)
    small = LookAlikeSet(2, 1, 2)
    files = render_pictures(root, small, size=16, seed=0)
    assert sorted(files) == sorted(root.rglob("*.jpg"))
    first = small.train[0].name
    assert files[1] == root / f"training_images/00001_{first}/{first}_02s.jpg"
    stamp = files[0].stat().st_mtime_ns
    assert render_pictures(root, small, size=16, seed=0) == files
    assert files[0].stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match=r"holds other pictures: wanted .*'size': 17.*choose another --out"):
        render_pictures(root, small, size=17, seed=0)
    # A drawing's second concept has scenes of its own.
    twice = next(c for c in pictures.train if c.reuse)
    paths = [path for path, concept, _ in pictures.plan() if concept.drawing == twice.drawing]
    assert len(paths) == 2


def test_features_have_the_published_keys_and_lengths(tmp_path):
    rng = np.random.default_rng(0)
    given = rng.standard_normal((8, 40)) + 3
    for features in (None, given):
        for normalised in (True, False):
            files = write_features(tmp_path, EEG, features, normalised=normalised)
            train, test = (torch.load(file, weights_only=True) for file in files)
            assert (train["img_features"].shape, train["text_features"].shape) == ((6, 1024), (3, 1024))
            assert (test["img_features"].shape, test["text_features"].shape) == ((2, 1024), (2, 1024))
            assert list(train) == ["text_features", "img_features"]
            assert train["img_features"].dtype == torch.float32
            norm = train["img_features"].norm(dim=1)
            assert torch.allclose(norm, torch.ones(6), atol=1e-5) if normalised else 20 < norm.mean() < 25
            assert torch.allclose(train["text_features"].norm(dim=1), torch.ones(3), atol=1e-5)
    assert [file.name for file in files] == ["ViT-H-14_features_train.pt", "ViT-H-14_features_test.pt"]
    # Distances between pictures survive the projection.
    images = torch.cat([train["img_features"], test["img_features"]]).double().numpy()
    centred = given - given[:6].mean(axis=0)
    before, after = np.corrcoef(centred), np.corrcoef(images / np.linalg.norm(images, axis=1, keepdims=True))
    upper = np.triu_indices(8, 1)
    assert np.corrcoef(before[upper], after[upper])[0, 1] > 0.9


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("npz", {}, "There is no layout 'npz': choose one of preprocessed, original, pt, raw, meg_fif, meg_pkl."),
        ("raw", {"repetitions": {"train": 3, "test": 6}}, "in fours (four sessions), but they are 3 and 6."),
        ("preprocessed", {"repetitions": {"train": 0}}, "--repetitions must be 1 or more."),
        ("preprocessed", {"subject": 0}, "--subject must be 1 or more."),
    ],
)
def test_bad_sizes_are_refused_before_anything_is_written(tmp_path, layout, options, message):
    with pytest.raises(ConfigError) as error:
        write_look_alike(layout, tmp_path / "out", EEG, **options)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_disk_and_memory_are_checked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lookalike.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10**9})())
    with pytest.raises(DataError, match=r"needs 10.35 GB under .*, but the disk has 1.00 GB free: make room"):
        write_look_alike("preprocessed", tmp_path, LookAlikeSet(1654, 200, 10))
    monkeypatch.undo()
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    with pytest.raises(DataError, match=r"MEG trials need 0.1 GB of memory .* but 0.0 GB are free: ask for fewer"):
        make("meg_fif", tmp_path)
    assert not list(tmp_path.rglob("*.*"))
