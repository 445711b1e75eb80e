"""Preprocessing from raw against an independent implementation of the published steps, written from facts/atm.md 1.3.

The oracle takes MNE's Raw and Epochs as a whole and scikit-learn's own `_cov`; ours reads windows block by block.
"""

import json

import mne
import numpy as np
import pytest
import scipy.linalg
from sklearn.discriminant_analysis import _cov
from sklearn.utils import shuffle

from eegrecon.data.channels import THINGS_EEG2_CHANNELS
from eegrecon.data.images import build_images_json
from eegrecon.data.mvnn import condition_covariance, shrunk_covariance, whitener
from eegrecon.data.preprocess import PreprocessParams
from eegrecon.data.raw_sessions import RawSource
from eegrecon.errors import ConfigError, DataError
from eegrecon.pocket.lookalike import LookAlikeSet, write_look_alike
from eegrecon.pocket.lookalike.pictures import render_pictures

SEED = 20200220
N_TRAIN, N_TEST = 6, 2


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Six training and two test pictures, four sessions, continuous, with catch trials; signals are white noise."""
    out = tmp_path_factory.mktemp("raw")
    pictures = LookAlikeSet(3, 2, 2)
    write_look_alike("raw", out, pictures, repetitions={"train": 4, "test": 8}, onset_gap=0.45)
    render_pictures(out / "images_set", pictures, size=16, seed=0)
    rng = np.random.default_rng(0)
    for path in sorted(out.rglob("raw_eeg_*.npy")):  # drifts and correlated channels, so that every step matters
        values = np.load(path, allow_pickle=True).item()
        n = values["raw_eeg_data"].shape[1]
        mixing = np.eye(63) + 0.3 * rng.normal(size=(63, 63)) / 8
        drift = np.cumsum(rng.normal(size=(63, n)), axis=1) * 2e-7
        values["raw_eeg_data"][:63] = mixing @ (values["raw_eeg_data"][:63] + drift)
        np.save(path, values)
    return out


def source(home, tmp_path, **args):
    return RawSource(str(home / "Raw_data"), subject=1, images=build_images_json(home), work=tmp_path / "work", **args)


def oracle(
    home, side, *, sfreq=250, tmax=1.0, names=THINGS_EEG2_CHANNELS, drop=50, mvnn="epochs", band=None, both=False,
    most=(2, 20),
):  # fmt: skip
    """The published steps, whole arrays in memory: (n_images, n_repetitions, n_chans, n_times) and sessions."""
    sessions, tables, conditions = [], {"training": [], "test": []}, {"training": [], "test": []}
    most = dict(zip(("training", "test"), most, strict=True))
    for session in range(1, 5):
        covariances, waiting = [], []
        for part in ("training", "test"):
            values = np.load(home / f"Raw_data/sub-01/ses-{session:02d}/raw_eeg_{part}.npy", allow_pickle=True).item()
            info = mne.create_info(values["ch_names"], values["sfreq"], values["ch_types"])
            raw = mne.io.RawArray(values["raw_eeg_data"], info, verbose=False)
            events = mne.find_events(raw, stim_channel="stim", verbose=False)
            events = events[events[:, 2] != 99999]
            raw.pick(list(names)).reorder_channels(list(names))
            if band:
                raw.filter(*band, verbose=False)
            epochs = mne.Epochs(raw, events, tmin=-0.2, tmax=tmax, baseline=(None, 0), preload=True, verbose=False)
            epochs.resample(sfreq, verbose=False)
            data, codes = epochs.get_data(copy=True) * 1e6, epochs.events[:, 2]
            kept = []
            for code in np.unique(codes):
                where = shuffle(np.where(codes == code)[0], random_state=SEED)[: most[part]]
                kept.append(data[where])
            kept = np.array(kept)[..., drop:]
            if mvnn == "epochs":
                per = [np.mean([_cov(t.T, shrinkage="auto") for t in trials], axis=0) for trials in kept]
            elif mvnn == "time":
                per = [
                    np.mean([_cov(trials[:, :, t], shrinkage="auto") for t in range(trials.shape[2])], axis=0)
                    for trials in kept
                ]
            if mvnn != "none" and (both or part == "training"):
                covariances.append(np.mean(per, axis=0))
            waiting.append((part, kept, np.unique(codes)))
        for part, kept, codes in waiting:
            if mvnn != "none":
                whiten = scipy.linalg.fractional_matrix_power(np.mean(covariances, axis=0), -0.5)
                kept = (kept.swapaxes(2, 3) @ whiten).swapaxes(2, 3)
            tables[part].append(kept)
            conditions[part].append(codes)
        sessions.append(session)
    part = "training" if side == "train" else "test"
    found, which = [], []
    for code in np.unique(np.concatenate(conditions[part])):
        rows = [(t[list(c).index(code)], s) for t, c, s in zip(tables[part], conditions[part], sessions, strict=True)
                if code in c]  # fmt: skip
        found.append(np.concatenate([row for row, _ in rows]))
        which.append(np.concatenate([[s] * len(row) for row, s in rows]))
    order = shuffle(np.arange(found[0].shape[0]), random_state=SEED)
    return np.array(found)[:, order], np.array(which)[:, order]


VARIANTS = {
    "published": ({}, {}),
    "no mvnn": ({"mvnn": "none"}, {"mvnn": "none"}),
    "filtered": (
        {"band": [2.0, 40.0], "n_chans": 17, "mvnn": "none"},
        {"band": (2.0, 40.0), "names": THINGS_EEG2_CHANNELS[-17:], "mvnn": "none"},
    ),
    "17 channels at 100 Hz": (
        {"n_chans": 17, "sfreq": 100, "tmax": 0.8, "crop": -0.2},
        {"names": THINGS_EEG2_CHANNELS[-17:], "sfreq": 100, "tmax": 0.8, "drop": 0},
    ),
    "as the data set's authors": (
        {"n_chans": 17, "sfreq": 100, "tmax": 0.8, "crop": -0.2, "mvnn": "time", "covariance": "both"},
        {"names": THINGS_EEG2_CHANNELS[-17:], "sfreq": 100, "tmax": 0.8, "drop": 0, "mvnn": "time", "both": True},
    ),
    "fewer repetitions than shown": ({"repetitions": [1, 1]}, {"most": (1, 1)}),
    "200 Hz": ({"sfreq": 200}, {"sfreq": 200, "drop": 40}),
}


@pytest.mark.filterwarnings("ignore:filter_length .* is longer than the signal")
@pytest.mark.parametrize(("args", "wanted"), VARIANTS.values(), ids=VARIANTS)
def test_every_variant_equals_the_published_steps(home, tmp_path, args, wanted):
    ours = source(home, tmp_path, **args)
    for side, n in (("train", N_TRAIN), ("test", N_TEST)):
        expected, sessions = oracle(home, side, **wanted)
        found = ours.read(side, 0, n)
        assert ours.counts()[side] == expected.shape[:2]
        assert found.shape == expected.shape == (*ours.counts()[side], len(ours.ch_names), ours.n_times)
        np.testing.assert_array_equal(ours.session(side), sessions)
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        assert difference < 1e-6, difference


def test_what_the_store_is_told(home, tmp_path):
    ours = source(home, tmp_path)
    assert (ours.sfreq, ours.tmin, ours.n_times, ours.unit) == (250.0, 0.0, 250, "mvnn")
    assert ours.counts() == {"train": (N_TRAIN, 4), "test": (N_TEST, 8)}
    assert ours.image_index("test").tolist() == [6, 7]
    assert len(ours.sources) == 8
    assert json.loads(json.dumps(ours.preprocessing))["reference"] == "as recorded"
    assert source(home, tmp_path, mvnn="none").unit == "uV"
    assert source(home, tmp_path, crop=0.001).tmin == 0.0  # the sample that is kept, not what was asked for
    assert source(home, tmp_path, band=[1.0, 40.0]).work_bytes > ours.work_bytes
    assert ours.work_bytes == (N_TRAIN * 4 + N_TEST * 8) * 63 * 250 * 4


def test_sessions_that_are_done_are_not_done_again(home, tmp_path):
    ours = source(home, tmp_path)
    seen = []
    ours.prepare(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    whole = ours.read("train", 0, N_TRAIN)
    again = source(home, tmp_path)
    np.testing.assert_array_equal(again.read("train", 2, 4), whole[2:4])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == before
    other = source(home, tmp_path, mvnn="time")
    assert np.abs(other.read("train", 0, 1) - whole[:1]).max() > 1e-3


def test_white_noise_stays_white_and_any_noise_becomes_so():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    noise = np.einsum("ij,njt->nit", mixing, rng.normal(size=(40, 5, 2000)))
    for mode in ("epochs", "time"):
        covariance = condition_covariance(noise, mode)
        np.testing.assert_allclose(covariance, mixing @ mixing.T, rtol=0.4, atol=0.4 if mode == "time" else 0.1)
    white = whitener(condition_covariance(noise, "epochs")) @ noise
    np.testing.assert_allclose(
        np.cov(white.transpose(1, 0, 2).reshape(5, -1)), np.eye(5), atol=0.05
    )  # shrinkage leaves a little


def test_shrinkage_is_scikit_learns():
    samples = np.random.default_rng(1).normal(size=(30, 6)) * np.array([1, 10, 0.1, 5, 1e-6, 0])
    samples[:, 2] = 1000.1  # constant, whose standard deviation is not exactly 0 in floating point
    np.testing.assert_allclose(shrunk_covariance(samples), _cov(samples, shrinkage="auto"), rtol=1e-12)


def changed(home, tmp_path, change, file="raw_eeg_training.npy"):
    for path in sorted(home.rglob("raw_eeg_*.npy")):
        target = tmp_path / path.relative_to(home)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    path = tmp_path / "Raw_data/sub-01/ses-02" / file
    values = np.load(path, allow_pickle=True).item()
    path.unlink()
    if (values := change(values)) is not None:
        np.save(path, values)
    return tmp_path


def edit(key, value):
    return lambda values: {**values, key: value(values[key]) if callable(value) else value}


def stim(change):
    def apply(data):
        data = data.copy()
        change(data)
        return data

    return edit("raw_eeg_data", apply)


def nan_in_a_trial(data):
    onset = np.flatnonzero(data[-1])[2]
    data[10, onset + 40] = np.nan


DAMAGE = {
    "missing": (lambda values: None, r"sub-01 lacks ses-02/raw_eeg_training\.npy"),
    "keys": (lambda values: {"eeg": 1}, "must hold a dict with raw_eeg_data"),
    "channels": (
        edit("ch_names", lambda n: ["X" if name == "Oz" else name for name in n]),
        "not so of the channels Oz",
    ),
    "twice": (edit("ch_names", lambda n: ["O1" if name == "Oz" else name for name in n]), "not so of the channels"),
    "names": (edit("ch_names", lambda n: n[:-1]), "63 names and 64 types"),
    "no stim": (edit("ch_types", lambda t: ["eeg"] * 64), "0 stim channels"),
    "rate": (edit("sfreq", "fast"), "sampling rate 'fast'"),
    "rates": (edit("sfreq", 500), "recorded at 500, 1000 Hz"),
    "too slow": (edit("sfreq", 100), "recorded at 100, 1000 Hz"),
    "codes": (stim(lambda d: d.__setitem__((-1, 5), 0.5)), "other numbers than event codes"),
    "foreign code": (stim(lambda d: d.__setitem__((-1, 800), 77)), "event code 77, but there are 6"),
    "cut": (edit("raw_eeg_data", lambda d: d[:, :2500]), "times in the sessions"),
    "lost events": (
        stim(lambda d: d.__setitem__((-1, np.flatnonzero(d[-1])[0]), 0)),
        "a session is missing or incompl",
    ),
    "NaN": (stim(nan_in_a_trial), r"NaN or infinite values near \d"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_sentence(home, tmp_path, change, message):
    images = build_images_json(home)
    broken = changed(home, tmp_path / "b", change)
    with pytest.raises(DataError, match=message):
        RawSource(str(broken / "Raw_data"), subject=1, images=images, work=tmp_path / "w").prepare()


def held(data):
    for onset in np.flatnonzero(data[-1]):
        data[-1, onset : onset + 4] = data[-1, onset]


def test_a_code_that_is_held_is_one_event(home, tmp_path):
    images = build_images_json(home)
    longer = changed(home, tmp_path / "b", stim(held))
    ours = RawSource(str(longer / "Raw_data"), subject=1, images=images, work=tmp_path / "w")
    np.testing.assert_array_equal(
        ours.recordings[2, "train"].onsets, source(home, tmp_path).recordings[2, "train"].onsets
    )


def test_one_session_alone_lacks_half_of_the_pictures(home, tmp_path):
    with pytest.raises(DataError, match=r"0 times in the sessions 1 and others 2 times"):
        source(home, tmp_path, sessions=[1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"n_chans": 60}, "n_chans is 60"), ({"mvnn": "yes"}, "mvnn is 'yes'"),
        ({"covariance": "test"}, "covariance is 'test'"), ({"crop": 2.0}, "must rise"),
        ({"band": [5.0, 1.0]}, "two rising numbers"), ({"sessions": []}, "different session numbers"),
        ({"repetitions": [0, 1]}, "must be above 0"),
    ],
)  # fmt: skip
def test_wrong_arguments(home, tmp_path, args, message):
    with pytest.raises(ConfigError, match=message):
        source(home, tmp_path, **args)
    assert PreprocessParams().ch_names == THINGS_EEG2_CHANNELS
