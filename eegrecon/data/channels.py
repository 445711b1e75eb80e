"""The THINGS-EEG2 montage: its 63 channels in file order, and the check that a recording has them in that order."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from eegrecon.errors import DataError

# Order of `ch_names` in the preprocessed THINGS-EEG2 files (NICE-EEG and EEG_Image_decode preprocessing.py pick the
# channels in this order; there is no Fz). The last 17 are the occipito-parietal ones of Gifford et al. (2022).
# fmt: off
THINGS_EEG2_CHANNELS: tuple[str, ...] = (
    "Fp1", "Fp2", "AF7", "AF3", "AFz", "AF4", "AF8", "F7", "F5", "F3", "F1", "F2", "F4", "F6", "F8", "FT9",
    "FT7", "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6", "FT8", "FT10", "T7", "C5", "C3", "C1", "Cz", "C2",
    "C4", "C6", "T8", "TP9", "TP7", "CP5", "CP3", "CP1", "CPz", "CP2", "CP4", "CP6", "TP8", "TP10", "P7", "P5",
    "P3", "P1", "Pz", "P2", "P4", "P6", "P8", "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2",
)
# fmt: on

# The occipito-parietal channels of the original preprocessing (eeg_encoding 02_eeg_preprocessing, regex `^O *|^P *`).
THINGS_EEG2_POSTERIOR = THINGS_EEG2_CHANNELS[-17:]

# Sets recorded (or simulated) with this montage, and the channel lists, in order, that their stores may hold.
THINGS_EEG2_SETS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pocket": (THINGS_EEG2_CHANNELS,),
    "things_eeg2": (THINGS_EEG2_CHANNELS, THINGS_EEG2_POSTERIOR),
}


def check_order(found: Sequence[str], allowed: Sequence[tuple[str, ...]], where: Path, fix: str) -> None:
    """Check that channels are one of the allowed lists, in its order.

    Raises:
        DataError: They are not; says which name comes twice, where the order breaks, or what is foreign or missing.
    """
    names = tuple(found)
    if names in allowed:
        return
    same = next((item for item in allowed if sorted(item) == sorted(names)), None)
    near = same or min(allowed, key=lambda item: abs(len(item) - len(names)))
    if len(set(names)) != len(names):
        what = f"{next(name for name, count in Counter(names).items() if count > 1)!r} is named twice"
    elif same is not None:
        at = next(i for i, pair in enumerate(zip(names, same, strict=True)) if pair[0] != pair[1])
        what = f"they are the same {len(same)} names in another order (position {at} is {names[at]!r}, expected "
        what += f"{same[at]!r})"
    else:
        lacking = ", ".join(name for name in near if name not in names) or "none"
        foreign = ", ".join(name for name in names if name not in near) or "none"
        what = f"they are {len(names)} names, without {lacking} and with {foreign} beyond the {len(near)}"
    counts = " or the last ".join(str(len(item)) for item in sorted(allowed, key=len, reverse=True))
    raise DataError(f"The channels in {where} must be the {counts} of THINGS-EEG2 in their order, but {what}: {fix}.")
