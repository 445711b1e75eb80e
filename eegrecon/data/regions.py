"""Regions of the head, by what channels are called, and the choice of channels by name or by region.

EEG names follow the 10-10 system: letters for the place, then a number or z. Which letters make a region is the map of
EEG_Image_decode (`eegdatasets_leaveone_topo.py`, April 2024, e0dfa58): frontal 15, central 14, parietal 16, temporal 10
and occipital 8 of the 63 channels of THINGS-EEG2. The MEG's are CTF's: M, side (L, R, Z), region, row and number.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eegrecon.config import REGIONS
from eegrecon.errors import ConfigError, DataError

_PLACES = {
    **dict.fromkeys(("Fp", "AF", "F"), "frontal"),
    **dict.fromkeys(("FC", "C"), "central"),
    **dict.fromkeys(("CP", "P"), "parietal"),
    **dict.fromkeys(("FT", "T", "TP"), "temporal"),
    **dict.fromkeys(("PO", "O", "I"), "occipital"),
}
_EEG = re.compile(r"([A-Z][A-Za-z]?)(?:z|\d{1,2})")
_MEG = re.compile(r"M[LRZ]([FCPTO])\d.*")
_MEG_REGIONS = {region[0].upper(): region for region in REGIONS}


def region_of(ch_name: str) -> str | None:
    """The region a channel lies over, or None if its name does not tell.

    >>> region_of("PO7"), region_of("Oz"), region_of("MLT25-1609"), region_of("stim")
    ('occipital', 'occipital', 'temporal', None)
    """
    if found := _MEG.fullmatch(ch_name):
        return _MEG_REGIONS[found[1]]
    found = _EEG.fullmatch(ch_name)
    return _PLACES.get(found[1]) if found else None


def choose_channels(choice: Any, ch_names: Sequence[str], where: Path) -> list[str]:
    """The channels that `data.channels` means, in the order in which they are read.

    Args:
        choice: "all"; names, in the order wanted; or `{"region": name or names}`, in the store's order.
        ch_names: What the store has.
        where: The store, for messages.

    Raises:
        ConfigError: The choice is none of the three, or names no known region.
        DataError: The store has no channel in a region, or lacks a name, or a name comes twice.
    """
    if choice == "all":
        return list(ch_names)
    if isinstance(choice, Mapping):
        return _of_regions(choice, ch_names, where)
    if isinstance(choice, str) or not all(isinstance(name, str) for name in choice):
        raise ConfigError(f"data.channels must be all, channel names or {{region: name}}, but it is {choice!r}.")
    names = list(choice)
    unknown = [name for name in names if name not in ch_names]
    if unknown or len(set(names)) != len(names):
        what = f"asks for {', '.join(unknown)}" if unknown else "names a channel twice"
        raise DataError(f"data.channels {what}, but {where} has each of {', '.join(ch_names)} once: correct the names.")
    return names


def _of_regions(choice: Mapping[str, Any], ch_names: Sequence[str], where: Path) -> list[str]:
    value = choice.get("region")
    regions = [value] if isinstance(value, str) else list(value or ())
    if set(choice) != {"region"} or not regions or not set(regions) <= set(REGIONS):
        raise ConfigError(
            f"data.channels is {dict(choice)}, but a choice by place is {{region: name or list of names}} with names "
            f"from {', '.join(REGIONS)}."
        )
    of = {name: region_of(name) for name in ch_names}
    if empty := [region for region in regions if region not in of.values()]:
        raise DataError(
            f"data.channels asks for {', '.join(empty)}, but none of the {len(ch_names)} channels in {where} "
            f"({', '.join(ch_names[:5])}, …) is named as lying there: give the channels' names instead."
        )
    return [name for name in ch_names if of[name] in regions]
