"""EEG encoders: `forward(eeg (b, n_chans, n_times), subject (b,)) -> (b, dim)`, one architecture per file."""

from eegrecon.config import ENCODERS

__all__ = ["ENCODERS"]
