"""The scan behind `inspect` against plain numpy, and its picture."""

import numpy as np
import pytest
from PIL import Image

from eegrecon.analysis.evoked import TrialScan, _places, evoked_figure, save_figure
from eegrecon.data.channels import THINGS_EEG2_CHANNELS

RNG = np.random.default_rng(0)


def scan_of(*blocks, ch_names=("O1", "Oz", "O2"), unit="uV"):
    scan = TrialScan(ch_names, sfreq=100.0, tmin=-0.1, unit=unit)
    for block in blocks:
        scan.add(block)
    return scan


def test_blocks_add_up_to_the_whole():
    trials = RNG.normal(1.0, 2.0, (7, 3, 40))
    scan = scan_of(trials[:3], trials[3:].astype(np.float32))
    np.testing.assert_allclose(scan.mean, trials.mean(0), atol=1e-6)
    np.testing.assert_allclose(scan.rms, np.sqrt((trials**2).mean((0, 2))), atol=1e-6)
    assert scan.n_trials == 7
    assert scan.problems() == []


def test_bad_trials_are_counted_and_left_out():
    trials = RNG.normal(size=(6, 3, 40))
    trials[1, 0, 3], trials[4, 2, 0] = np.nan, np.inf
    scan = scan_of(trials)
    np.testing.assert_allclose(scan.mean, trials[[0, 2, 3, 5]].mean(0))
    assert scan.problems() == [
        "2 of 6 trials hold NaN or infinite values, where only finite numbers may stand: make the file again from its "
        "source, or leave these trials out."
    ]


def test_a_constant_channel_is_named_but_one_that_moves_in_one_trial_is_not():
    trials = RNG.normal(size=(6, 3, 40))
    trials[:, 1] = 0.5
    trials[:5, 2] = 0.0
    assert scan_of(trials).constant == ["Oz"]
    assert "the channels Oz never change" in scan_of(trials[:3], trials[3:]).problems()[0]


@pytest.mark.parametrize(
    ("names", "unit", "axes"),
    [
        (THINGS_EEG2_CHANNELS, "mvnn", 7),
        (["MLC11-1609", "MRC11-1609", "MLO52-1609", "MRO52-1609", "MZF01-1609"], "zscore", 7),
        ([f"A{i}" for i in range(9)], "fT", 1),
    ],
)
def test_the_picture_has_maps_where_positions_are_known(tmp_path, names, unit, axes):
    figure = evoked_figure(scan_of(RNG.normal(size=(4, len(names), 60)), ch_names=names, unit=unit), "a file")
    assert len(figure.axes) == axes
    save_figure(figure, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size[0] == 1100


def test_ctf_sensors_lie_as_their_names_say():
    left, right, back, front = _places(["MLT14-1609", "MRT14-1609", "MZO03-1609", "MZF01-1609"], 200.0)
    assert left[0] < back[0] < right[0]
    assert back[1] < left[1] < front[1]
    assert _places(["MLC11", "unknown"], 200.0) is None
    assert _places(["O1", "O1"], 200.0) is None
