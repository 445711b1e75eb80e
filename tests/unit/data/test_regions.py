from pathlib import Path

import pytest

from eegrecon.config import REGIONS
from eegrecon.data import THINGS_EEG2_CHANNELS
from eegrecon.data.regions import choose_channels, region_of
from eegrecon.errors import ConfigError, DataError

STORE = Path("trials/sub-01")
# Written out from the published map (facts/atm.md section 8), not from the rule.
PUBLISHED = {
    "frontal": "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8",
    "central": "FC5 FC3 FC1 FCz FC2 FC4 FC6 C5 C3 C1 Cz C2 C4 C6",
    "parietal": "CP5 CP3 CP1 CPz CP2 CP4 CP6 P7 P5 P3 P1 Pz P2 P4 P6 P8",
    "temporal": "FT9 FT7 T7 TP9 TP7 TP8 TP10 T8 FT8 FT10",
    "occipital": "PO7 PO3 POz PO4 PO8 O1 Oz O2",
}


@pytest.mark.parametrize("region", REGIONS)
def test_the_63_channels_lie_where_the_published_map_says(region):
    names = PUBLISHED[region].split()
    assert sorted(choose_channels({"region": region}, THINGS_EEG2_CHANNELS, STORE)) == sorted(names)
    assert {region_of(name) for name in names} == {region}


def test_together_they_are_all_63_in_the_stores_order():
    assert choose_channels({"region": list(REGIONS)}, THINGS_EEG2_CHANNELS, STORE) == list(THINGS_EEG2_CHANNELS)
    some = choose_channels({"region": ["occipital", "frontal"]}, THINGS_EEG2_CHANNELS, STORE)
    assert some == [*THINGS_EEG2_CHANNELS[:15], *THINGS_EEG2_CHANNELS[-8:]]


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("MLC11-1609", "central"), ("MRF14", "frontal"), ("MZO01-1609", "occipital"), ("MLP57", "parietal"),
        ("MRT16-1609", "temporal"), ("Fz", "frontal"), ("Iz", "occipital"), ("stim", None), ("EOG1", None),
        ("M1", None), ("MEG0113", None), ("Cz2x", None), ("BG1-1609", None), ("EEG001", None), ("T7", "temporal"),
    ],
)  # fmt: skip
def test_single_names(name, region):
    assert region_of(name) == region


def test_names_come_in_the_order_asked_for():
    assert choose_channels(["Oz", "Cz"], THINGS_EEG2_CHANNELS, STORE) == ["Oz", "Cz"]
    assert choose_channels("all", ["b", "a"], STORE) == ["b", "a"]


@pytest.mark.parametrize(
    ("choice", "kind", "message"),
    [
        ({"region": "back"}, ConfigError, "with names from frontal, central"),
        ({"regions": "occipital"}, ConfigError, "a choice by place is"),
        ({"region": []}, ConfigError, "a choice by place is"),
        ("Oz", ConfigError, "must be all, channel names or"),
        (["Oz", "Fz"], DataError, "asks for Fz, but trials/sub-01"),
        (["Oz", "Oz"], DataError, "names a channel twice"),
    ],
)
def test_wrong_choices(choice, kind, message):
    with pytest.raises(kind, match=message):
        choose_channels(choice, THINGS_EEG2_CHANNELS, STORE)
    with pytest.raises(DataError, match="asks for temporal, but none of the 2 channels in trials/sub-01"):
        choose_channels({"region": ["occipital", "temporal"]}, ["Oz", "A1"], STORE)
