"""`mne.Epochs` become what training saw, sample by sample, or are refused in one sentence."""

from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pytest

from eegrecon.data.channels import THINGS_EEG2_CHANNELS
from eegrecon.data.epochs import EEGFormat, checked_array, from_epochs
from eegrecon.data.preprocess import PreprocessParams, Recording, epoch_blocks
from eegrecon.data.trials import TrialStore
from eegrecon.errors import DataError

WANTED = EEGFormat(("Oz", "O1", "Pz"), 250, 250.0, 0.0, "uV", (-0.2, 0.0), True)
RAW = 1000.0


def epochs(names=("Pz", "Fp1", "Oz", "O1"), sfreq=RAW, tmin=-0.2, tmax=1.0, kind="eeg", scale=1e-5, n=3, **more):
    n_times = round((tmax - tmin) * sfreq) + 1
    data = np.random.default_rng(0).standard_normal((n, len(names), n_times)) * scale + 3 * scale
    info = mne.create_info(list(names), sfreq, kind)
    return mne.EpochsArray(data, info, tmin=tmin, baseline=more.pop("baseline", None), verbose=False)


def refused(given, wanted=WANTED, channel_std=None):
    with pytest.raises(DataError) as found:
        from_epochs(given, wanted, channel_std)
    text = str(found.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_epochs_give_what_the_training_code_gave():
    names, params = THINGS_EEG2_CHANNELS, PreprocessParams(mvnn="none")
    data = np.random.default_rng(1).standard_normal((63, 4000)) * 1e-5 + 2e-5
    onsets = np.array([500, 1700])
    recording = Recording(Path("x"), data, list(names), RAW, onsets, np.array([1, 2]))
    (trained,) = epoch_blocks(recording, np.arange(2), params)
    shuffled = [*reversed(names), "EOG"]
    info = mne.create_info(shuffled, RAW, ["eeg"] * 63 + ["eog"])
    cut = np.stack([np.vstack([data[::-1], data[:1]])[:, at - 200 : at + 1001] for at in onsets])
    wanted = EEGFormat.from_manifest(
        {
            "channels": names, "n_times": 250, "sfreq": 250.0, "window": [0.0, 1.0], "unit": "uV",
            "preprocessing": {
                "baseline": [None, 0.0], "tmin": -0.2, "tmax": 1.0, "band": None, "reference": "as recorded",
            },
        }
    )  # fmt: skip
    assert (wanted.baseline, wanted.reference) == ((-0.2, 0.0), "as recorded")
    given = mne.EpochsArray(cut, info, tmin=-0.2, verbose=False)
    before = given.get_data(copy=True)
    found, notes = from_epochs(given, wanted, np.full(63, 10.0))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, trained, atol=1e-4)
    assert notes == ["channels that the encoder does not know are left out: EOG"]
    np.testing.assert_array_equal(given.get_data(copy=False), before)
    assert given.ch_names == shuffled


def test_resampling_does_not_alias():
    given = epochs(names=WANTED.ch_names, tmin=-0.5, tmax=1.5)
    times = given.times
    given._data[:] = 1e-5 * (np.sin(2 * np.pi * 6 * times) + np.sin(2 * np.pi * 240 * times))  # 240 Hz would become 10
    found, _ = from_epochs(given, replace(WANTED, baseline=None))
    slow = 10 * np.sin(2 * np.pi * 6 * np.arange(250) / 250)
    assert np.abs(found - slow).max() < 0.5  # MNE places samples to within half of one; the alias would add 10


def test_names_match_whatever_their_case_and_only_then():
    given = epochs(names=("PZ", "OZ", "o1", "x"))
    found, notes = from_epochs(given, WANTED)
    same, _ = from_epochs(given.copy().rename_channels({"PZ": "Pz", "OZ": "Oz", "o1": "O1"}), WANTED)
    np.testing.assert_array_equal(found, same)
    assert "left out: x" in notes[0]
    text = refused(epochs(names=("O1", "oz", "OZ", "C3")))  # which of the two is Oz?
    assert "lack 2 of the 3 channels" in text
    assert "(Oz, Pz)" in text


def test_a_baseline_is_subtracted_once_and_the_same():
    whole = epochs(tmax=1.1, sfreq=250.0)
    wanted, _ = from_epochs(whole, WANTED)
    done = whole.copy().apply_baseline((-0.2, 0.0), verbose=False).crop(-0.1, None)
    found, _ = from_epochs(done, WANTED)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    other = whole.copy().apply_baseline((0.5, 1.0), verbose=False)
    np.testing.assert_allclose(from_epochs(other, WANTED)[0], wanted, atol=1e-4)
    assert "start at -0.1 s and no baseline was subtracted" in refused(epochs(tmin=-0.1))
    assert "their baseline was 0.5 to 1 s" in refused(other.crop(-0.1, None))
    never = replace(WANTED, baseline=None)
    assert from_epochs(epochs(tmin=0.0), never)[0].shape == (3, 3, 250)
    assert "which cannot be undone" in refused(whole.copy().apply_baseline((-0.2, 0), verbose=False), never)


@pytest.mark.parametrize(
    ("given", "wanted", "says"),
    [
        ({"tmax": 0.8}, WANTED, r"go from -0.2 to 0.8 s \(1001 samples at 1000 Hz\), but the encoder sees 0 to 1 s"),
        ({"tmin": 0.1}, WANTED, "go from 0.1 to 1 s"),
        ({"kind": "misc"}, WANTED, r"Oz \(misc\), O1 \(misc\), Pz \(misc\): correct them"),
        ({}, replace(WANTED, unit="mvnn"), r"noise covariance.*pass an array \(trials, 3, 250\).*Oz, O1, Pz"),
        ({}, replace(WANTED, unit="zscore"), "standard deviation of the baseline over a session, which cannot be done"),
        ({}, replace(WANTED, baseline_known=False), r"does not say its data's preprocessing \(its baseline\)"),
        ({}, EEGFormat(("Oz",), 250), "does not say its data's sfreq, window, unit, preprocessing"),
        ({"scale": np.nan}, WANTED, "holds nan in trial 0 at Oz, sample 0"),
        ({"scale": 1e-2}, WANTED, r"vary 5e\+02 times as much .* MNE's volts are turned into µV: .* another unit"),
    ],
)  # fmt: skip
def test_what_cannot_be_prepared_is_refused(given, wanted, says):
    import re

    assert re.search(says, refused(epochs(**given), wanted, channel_std=np.full(len(wanted.ch_names), 10.0)))


def average_projector(given):
    return given.copy().set_eeg_reference("average", projection=True, verbose=False)


REFERENCED = {
    "average": lambda given: given.copy().set_eeg_reference("average", verbose=False),
    "channel": lambda given: given.copy().set_eeg_reference(["Fp1"], verbose=False),
    "projector": lambda given: average_projector(given).apply_proj(verbose=False),
}


@pytest.mark.parametrize("reference", [None, "infinity", "as recorded"])
@pytest.mark.parametrize("how", REFERENCED)
def test_epochs_that_were_re_referenced_are_refused(how, reference):
    """An average reference cost 13 of 56 points of top-1 retrieval on the pocket set, and nothing was said."""
    says = "their manifest names none" if reference is None else f"their reference is '{reference}'"
    state = "an average reference projector is applied"
    state = state if how == "projector" else 'MNE\'s info["custom_ref_applied"] is set'
    assert refused(REFERENCED[how](epochs()), replace(WANTED, reference=reference)) == (
        f"The epochs were re-referenced ({state}), but the encoder's training trials were not ({says}): hand over "
        "epochs with the reference of the recording; who wants these numbers all the same, or knows that the reference "
        'is right, passes epochs.get_data(units="uV") as an array (trials, 3, 250) of 3 channels × 250 samples '
        "(0 to 1 s at 250 Hz) in µV."
    )


def test_training_with_a_reference_asks_for_one():
    wanted = replace(WANTED, reference="average")
    assert refused(epochs(), wanted).startswith(
        "The encoder's training trials were re-referenced to average, but the epochs were not "
        '(info["custom_ref_applied"] is off): call epochs.set_eeg_reference likewise; who wants'
    )
    note = "the epochs were re-referenced, the training trials to average: is it the same?"
    for change in REFERENCED.values():
        assert note in from_epochs(change(epochs()), wanted)[1]


def test_references_that_change_nothing():
    waiting = average_projector(epochs())  # not applied: the numbers are those of the recording
    np.testing.assert_array_equal(from_epochs(waiting, WANTED)[0], from_epochs(epochs(), WANTED)[0])
    names = ("Pz", "Oz", "O1")
    blink = mne.Projection(
        active=False, kind=1, desc="blinks", explained_var=None,
        data={"nrow": 1, "ncol": 3, "row_names": None, "col_names": list(names), "data": np.ones((1, 3)) / 3**0.5},
    )  # fmt: skip
    given = epochs(names=names).add_proj([blink], verbose=False).apply_proj(verbose=False)
    assert from_epochs(given, WANTED)[1] == ["projectors are applied that training did not have: blinks"]
    magnetic = epochs(kind="mag", scale=1e-14)
    with magnetic.info._unlock():
        magnetic.info["custom_ref_applied"] = 1  # of the EEG that was recorded with it
    assert from_epochs(magnetic, replace(WANTED, unit="fT"))[0].shape == (3, 3, 250)


@pytest.mark.parametrize("tmin", [-0.1, -0.2, -0.3, -0.5])
@pytest.mark.parametrize("window", [0.05, 0.042, 0.1, 0.0, 0.126])
@pytest.mark.parametrize("first", [0.0, -0.2, 0.002])
def test_the_window_starts_at_the_sample_that_training_saw(tmin, window, first):
    """Oracle: the store's own choice of samples, on a ramp that says the time of each."""

    class Store(TrialStore):
        def __init__(self):
            self.tmin, self.sfreq, self.n_times, self.path = first, 250.0, 250, Path("x")

    chosen = Store().select_window((window, window + 0.4))
    seen = first + np.arange(250)[chosen] / 250
    data = {
        "channels": ["Oz"], "n_times": len(seen), "sfreq": 250.0, "window": [window, window + 0.4], "unit": "uV",
        "preprocessing": {"baseline": None}, "tmin": first,
    }  # fmt: skip
    given = epochs(names=("Oz",), sfreq=250.0, tmin=tmin)
    given._data[:] = given.times * 1e-6
    off = abs(((tmin - first) * 250 + 0.25) % 1 - 0.25)  # nearest sample where the two grids do not meet
    found = from_epochs(given, EEGFormat.from_manifest(data))[0]
    np.testing.assert_allclose(found[0, 0], seen, atol=off / 250 + 1e-5)
    if first == 0:  # as of manifests that do not say when their stores began
        del data["tmin"]
        np.testing.assert_array_equal(found, from_epochs(given, EEGFormat.from_manifest(data))[0])


def with_channels(factors, n=3):
    """Epochs of 10 channels that vary as in training but for these factors."""
    names = ("Oz", "O1", "Pz", "O2", "P3", "P4", "P5", "P6", "P7", "P8")
    given, wanted = epochs(names=names, n=n), replace(WANTED, ch_names=names)
    std = from_epochs(given[:64], wanted)[0].std(axis=(0, 2))
    for name, factor in factors.items():
        given._data[:, names.index(name)] *= factor
    return given, wanted, std


def test_single_channels_in_another_unit_are_named_whatever_the_median():
    four = dict.fromkeys(("Oz", "O1", "P3", "P8"), 1e6)
    assert refused(*with_channels(four)) == (
        "Some channels of the epochs vary far from what they did in the encoder's training trials once MNE's volts are "
        "turned into µV (how many times as much: Oz 1e+06, O1 1e+06, P3 1e+06, P8 1e+06): scale those that are in "
        "another unit, and if they are bad, mend them with epochs.interpolate_bads, or pass an array in the encoder's "
        "unit."
    )
    assert "as much: P3 0.001)" in refused(*with_channels({"P3": 1e-3}))
    assert "vary 1e+06 times as much" in refused(*with_channels(dict.fromkeys(with_channels({})[1].ch_names, 1e6)))
    assert from_epochs(*with_channels({}))[1] == []
    note = "channels that vary more or less than in training, by this factor: O1 0.005, P3 1.5e+02"
    assert from_epochs(*with_channels({"P3": 150, "O1": 0.005}))[1] == [note]


def test_epochs_without_numbers_are_no_other_unit():
    everything = dict.fromkeys(with_channels({})[1].ch_names, 0.0)
    says = "The epochs hold nothing but zeros: check how they were made and read."
    assert refused(*with_channels(everything)) == says
    says = (
        "Channels of the epochs are constant within each of the first 3 trials, as if nothing had been recorded there "
        "(O1, P4): mend them with epochs.interpolate_bads, or pass an array in the encoder's unit."
    )
    assert refused(*with_channels({"O1": 0.0, "P4": 0.0})) == says
    most = {name: 0.0 for name in everything if name != "Oz"}
    assert "the first 64 trials" in (text := refused(*with_channels(most, n=70)))
    assert "(O1, Pz, O2, P3, P4, P5, P6, P7, and 1 more)" in text


def test_recordings_and_averages_are_no_epochs():
    raw = mne.io.RawArray(np.zeros((1, 500)), mne.create_info(["Oz"], 250.0, "eeg"), verbose=False)
    for thing in (raw, epochs().average()):
        assert f"The EEG is {type(thing).__name__}, expected mne.Epochs (or an array)" in refused(thing)


def test_no_trials_damaged_files_and_what_is_only_odd(monkeypatch):
    assert "hold no trial" in refused(epochs()[:0])
    given = epochs(sfreq=200.0)
    given.info["bads"] = ["Oz"]
    notes = from_epochs(given, replace(WANTED, band=(1.0, 40.0)))[1]
    assert [note.split(":")[0] for note in notes] == [
        "channels that the encoder does not know are left out",
        "channels marked as bad are used as they are, interpolate_bads mends them",
        "training trials were filtered to 1–40 Hz, these epochs to 0–100 Hz",
        "the epochs have 200 Hz, the training trials 250 Hz",
    ]
    monkeypatch.setattr(given, "get_data", lambda **_: 1 / 0)
    assert "samples cannot be read (division by zero)" in refused(given)


def test_arrays_are_checked_and_left_alone():
    good = np.zeros((300, 3, 250))
    assert checked_array(good, WANTED) is good
    for wrong in (good[0], good[:, :2], good.astype(str), good.astype(bool), good.astype(complex)):
        with pytest.raises(DataError, match=r"must be numbers \(trials, 3, 250\).*3 channels × 250 samples \(0 to 1 s"):
            checked_array(wrong, WANTED)
    good[280, 1, 7] = 1e39
    with pytest.raises(DataError, match=r"e\+38 in|e\+39 in trial 280 at O1, sample 7"):
        checked_array(good, WANTED)
