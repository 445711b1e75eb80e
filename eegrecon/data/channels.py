"""The THINGS-EEG2 montage: its 63 channels in file order."""

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

# Sets recorded (or simulated) with this montage: their stores must hold exactly these channels in this order.
THINGS_EEG2_SETS = ("pocket", "things_eeg2")
