"""What a pipeline is called with, looked at before anything is made: one sentence instead of a library's traceback."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from eegrecon.data.epochs import UNIT_WORDS, EEGFormat, checked_array, from_epochs
from eegrecon.data.picture_rows import check_finite
from eegrecon.data.spreads import is_odd, odd_channels, spread
from eegrecon.errors import ConfigError, DataError


def check_counts(**numbers: Any) -> None:
    """Refuse what is no whole number from 1; None is left to its default.

    Raises:
        ConfigError: Names all of them.
    """
    _refuse({name: value for name, value in numbers.items() if not _is_count(value)}, "a whole number of at least 1")


def check_scales(**numbers: Any) -> None:
    """Refuse what is no finite number from 0; None is left to its default.

    Raises:
        ConfigError: Names all of them.
    """
    _refuse({name: value for name, value in numbers.items() if not _is_scale(value)}, "a finite number of at least 0")


def _refuse(wrong: dict[str, Any], expected: str) -> None:
    if wrong:
        raise ConfigError(f"{', '.join(f'{name} is {value!r}' for name, value in wrong.items())}, expected {expected}.")


def _is_count(value: Any) -> bool:
    try:
        return value is None or operator.index(value) >= 1
    except TypeError:
        return False


def _is_scale(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float | np.number) and math.isfinite(value) and bool(value >= 0)


def trials_of(eeg: Any, wanted: EEGFormat, channel_std: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Trials in the encoder's form, (n, n_chans, n_times), and what is odd about them.

    Args:
        eeg: `mne.Epochs`, or numbers in the encoder's form already.
        wanted: The encoder's form.
        channel_std: (n_chans,) of its training trials.

    Raises:
        DataError: It is not what the encoder was trained on.
    """
    if hasattr(eeg, "ch_names"):  # something of MNE's
        if not hasattr(eeg, "times"):
            raise DataError(f"the EEG is a {type(eeg).__name__}, expected mne.Epochs: give the epochs themselves.")
        return from_epochs(eeg, wanted, channel_std)
    try:
        values = eeg.detach().cpu().float().numpy() if isinstance(eeg, Tensor) else np.asanyarray(eeg)
    except ValueError as error:
        raise DataError("the EEG is a list of trials of different shapes: give one array, or mne.Epochs.") from error
    trials, notes = checked_array(values, wanted), []
    dead, *odd = odd_channels(trials, channel_std, wanted.ch_names)
    if is_odd(ratio := spread(trials, channel_std)):
        unit = UNIT_WORDS.get(str(wanted.unit), "that of training")
        notes.append(f"the EEG varies {ratio:.2g} times as much as the training trials: is its unit {unit}?")
    elif single := ", ".join(filter(None, odd)):
        notes.append(f"channels vary more or less than in training, by this factor: {single}: are they in one unit?")
    if dead:
        notes.append(f"channels are constant within every trial: {dead}")
    return trials, notes


def check_told(
    image_embeds: Tensor, latents: Tensor | None, captions: Sequence[Sequence[str]] | None, generator: Any
) -> None:
    """Refuse what a picture generator cannot be told.

    Args:
        image_embeds: Expected (n, draws, dim).
        latents: Expected (n, *latent_shape), or None.
        captions: Expected n lists of a prompt for each draw, or None.
        generator: May have `dim` and `latent_shape`.

    Raises:
        DataError: Shapes or counts differ, or a number is not finite; trials are counted from 0.
    """
    dim = getattr(generator, "dim", None)
    if image_embeds.ndim != 3 or not image_embeds.numel() or dim not in (None, image_embeds.shape[2]):
        raise DataError(
            f"image_embeds must be (trials, draws, {dim or 'dim'}) in the space this generator was trained on, got "
            f"{tuple(image_embeds.shape)}: give what `embed` returns, or add a dimension for the draws."
        )
    n, draws, _ = image_embeds.shape
    shape = getattr(generator, "latent_shape", None)
    if latents is not None and (len(latents) != n or (shape and tuple(latents.shape[1:]) != tuple(shape))):
        expected = (n, *shape) if shape else f"({n}, …)"
        raise DataError(
            f"latents must be {expected} for these trials and this generator, got {tuple(latents.shape)}: make them "
            "with its autoencoder at its size."
        )
    if captions is not None and [len(row) for row in captions] != [draws] * n:
        raise DataError(
            f"captions must be {n} lists of {draws} prompts, one a draw, got {[len(row) for row in captions][:5]}."
        )
    check_finite(image_embeds, "image_embeds")
    if latents is not None:
        check_finite(latents, "latents")
