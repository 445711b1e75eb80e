"""Whether EEG varies as an encoder's training trials did, as a whole and channel by channel."""

import numpy as np
import pytest

from eegrecon.data.spreads import channel_spreads, is_odd, odd_channels, spread

NAMES = ("Oz", "O1", "Pz")
STD = np.array([1.0, 2.0, 4.0])


def trials(factors=(1, 1, 1)):
    return np.random.default_rng(0).standard_normal((9, 3, 250)) * (STD * factors)[:, None]


def test_the_spread_is_odd_when_the_unit_is_wrong():
    eeg, std = trials(), STD
    assert spread(eeg, std) == pytest.approx(1, abs=0.05)
    assert [is_odd(spread(eeg * scale, std)) for scale in (1e-6, 0.02, 50, 1e6, np.nan)] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_channels_are_named_by_what_is_wrong_with_them():
    assert odd_channels(trials(), STD, NAMES) == ("", "", "")
    assert odd_channels(trials((1, 1e6, 120)), STD, NAMES) == ("", "O1 1e+06", "Pz 1.2e+02")
    assert odd_channels(trials((0, 1e-3, 0.005)), STD, NAMES) == ("Oz", "O1 0.001", "Pz 0.0049")
    assert odd_channels(trials(), np.array([1, np.nan, 4]), NAMES) == ("", "", "")


def test_a_constant_that_differs_from_trial_to_trial_is_constant():
    eeg = trials()
    eeg[:, 1] = np.arange(9)[:, None] + 0.1  # whose deviation rounds to above 0
    np.testing.assert_allclose(channel_spreads(eeg, STD), [1, 0, 1], atol=0.05)
