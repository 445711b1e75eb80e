"""Low-level networks: `forward(eeg (b, n_chans, n_times), subject (b,)) -> (b, *latent_shape)`, one a file."""

from eegrecon.config import LOW_LEVEL

__all__ = ["LOW_LEVEL"]
