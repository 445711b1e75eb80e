"""Somebody's EEG in the form an encoder was trained on: plain arrays are checked, `mne.Epochs` are brought there.

The steps and their order are those of training (`eegrecon.data.preprocess`): channels picked in a fixed order,
baseline, resampling of the whole epoch, samples of the window. What cannot be done from epochs alone is refused.
MNE's resampling places samples to within half of one, depending on an epoch's length: epochs as long as those of
training come out exactly as these did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eegrecon.data.references import check_reference
from eegrecon.data.spreads import LOOKED_AT, is_odd, odd_channels, spread
from eegrecon.errors import DataError

__all__ = ["FROM_MNE", "UNIT_WORDS", "EEGFormat", "checked_array", "from_epochs"]

BLOCK = 256  # trials that are looked at together
# Unit of training → MNE's channel types, how many of it are one of MNE's, and what MNE's is called.
FROM_MNE: dict[str, tuple[frozenset[str], float, str]] = {
    "uV": (frozenset({"eeg", "seeg", "ecog", "dbs"}), 1e6, "volts"),
    "fT": (frozenset({"mag"}), 1e15, "tesla"),
}
UNIT_WORDS = {
    "uV": "µV",
    "fT": "fT",
    "mvnn": "unitless after multivariate noise normalisation",
    "zscore": "unitless, divided by the standard deviation of the baseline",
}


@dataclass(frozen=True)
class EEGFormat:
    """What an encoder's training trials were; `None` where its manifest does not say.

    Attributes:
        ch_names: Channels in order.
        n_times: Samples per trial.
        sfreq: Samples per second.
        tmin: Time of the first sample, seconds from picture onset.
        unit: "uV", "mvnn", "fT" or "zscore".
        baseline: Seconds whose mean was subtracted; None: none was, if `baseline_known`.
        baseline_known: Whether the manifest says anything about a baseline.
        band: Hz that were kept by a filter, or None.
        reference: What the trials were re-referenced to (`eegrecon.data.references`), or how they were recorded.
    """

    ch_names: tuple[str, ...]
    n_times: int
    sfreq: float | None = None
    tmin: float | None = None
    unit: str | None = None
    baseline: tuple[float, float] | None = None
    baseline_known: bool = False
    band: tuple[float, float] | None = None
    reference: str | None = None

    @classmethod
    def from_manifest(cls, data: Mapping[str, Any]) -> EEGFormat:
        """Read the `data` of an encoder's manifest."""
        done: Mapping[str, Any] = data.get("preprocessing") or {}
        known, baseline = "baseline" in done, done.get("baseline")
        if baseline is not None:  # an open end is that of the epochs which training cut
            ends = [
                done.get(name) if end is None else end for name, end in zip(("tmin", "tmax"), baseline, strict=True)
            ]
            start, stop = ends
            known = start is not None and stop is not None
            baseline = (float(start), float(stop)) if start is not None and stop is not None else None
        band = done.get("band", done.get("filter"))
        return cls(
            ch_names=tuple(data["channels"]),
            n_times=int(data["n_times"]),
            sfreq=data.get("sfreq"),
            tmin=_stored_time(data),
            unit=data.get("unit"),
            baseline=baseline,
            baseline_known=known,
            band=None if band is None else (float(band[0]), float(band[1])),
            reference=done.get("reference"),
        )

    def describe(self) -> dict[str, Any]:
        """As plain JSON, for a reader."""
        return {**asdict(self), "ch_names": list(self.ch_names)}

    def __str__(self) -> str:
        """Such as "63 channels × 250 samples (0 to 1 s at 250 Hz) in µV"."""
        text = f"{len(self.ch_names)} channels × {self.n_times} samples"
        if self.sfreq is not None and self.tmin is not None:
            text += f" ({self.tmin:g} to {self.tmin + self.n_times / self.sfreq:g} s at {self.sfreq:g} Hz)"
        return text if self.unit is None else f"{text} in {UNIT_WORDS[self.unit]}"


def _stored_time(data: Mapping[str, Any]) -> float | None:
    """When the first sample of the window was taken, by the rounding of `TrialStore.select_window`.

    Samples of a store are counted from its own first one. Manifests that do not say when that was are of stores that
    began at onset, or whole samples before it.
    """
    if "window" not in data or data.get("sfreq") is None:
        return data["window"][0] if "window" in data else None
    start, first, rate = float(data["window"][0]), float(data.get("tmin", 0.0)), float(data["sfreq"])
    return round(first + round((start - first) * rate) / rate, 9)


def checked_array(eeg: Any, wanted: EEGFormat, what: str = "the EEG") -> np.ndarray:
    """Check trials that are in the encoder's form already.

    Args:
        eeg: (n, n_chans, n_times) numbers, in memory or mapped.
        wanted: The encoder's form.
        what: What it is, for messages.

    Returns:
        The array as it is (not copied, not converted).

    Raises:
        DataError: Another shape, no numbers, no trials, or values that float32 cannot hold.
    """
    eeg = np.asanyarray(eeg)
    shape = (len(wanted.ch_names), wanted.n_times)
    if eeg.ndim != 3 or eeg.shape[1:] != shape or eeg.dtype.kind not in "fiu":
        raise DataError(
            f"{_capital(what)} must be numbers (trials, {shape[0]}, {shape[1]}), as the encoder was trained on "
            f"{wanted}, but it is {eeg.dtype} {eeg.shape}: pick, order, cut and resample as in training."
        )
    if not len(eeg):
        raise DataError(f"{_capital(what)} holds no trial: give at least one.")
    for start in range(0, len(eeg), BLOCK):
        block = eeg[start : start + BLOCK]
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf
            finite = np.isfinite(block.astype(np.float32))
        if not finite.all():
            trial, channel, sample = np.argwhere(~finite)[0].tolist()
            raise DataError(
                f"{_capital(what)} holds {float(block[trial, channel, sample])} in trial {start + trial} at "
                f"{wanted.ch_names[channel]}, sample {sample} (counted from 0), expected finite numbers that float32 "
                "can hold: mend or leave out such trials."
            )
    return eeg


def from_epochs(epochs: Any, wanted: EEGFormat, channel_std: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
    """`mne.Epochs` in the form the encoder was trained on.

    Args:
        epochs: Time 0 is picture onset. Left as they are.
        wanted: The encoder's form.
        channel_std: (n_chans,) of its training trials, to notice epochs that are not in MNE's unit.

    Returns:
        (n, n_chans, n_times) float32 in the encoder's unit, and what the user should know, a sentence each.

    Raises:
        DataError: What training did cannot be done to these epochs, or they hold no finite trials.
    """
    if not hasattr(epochs, "drop_log"):
        raise DataError(
            f"The EEG is {type(epochs).__name__}, expected mne.Epochs (or an array): cut a recording with mne.Epochs; "
            "an average is one trial of mne.EpochsArray."
        )
    factor = _unit_factor(wanted)
    names, notes = _channels(epochs, wanted)
    if wanted.unit == "uV":
        notes += check_reference(epochs, wanted.reference, _as_array(wanted))
    start = _first_sample(epochs, wanted, notes)
    baseline = _baseline(epochs, wanted)
    import mne

    rate, tmin = float(epochs.info["sfreq"]), float(epochs.times[0])
    info = mne.create_info(list(wanted.ch_names), rate, "eeg")
    picked = mne.EpochsArray(_samples(epochs, names), info, tmin=tmin, baseline=baseline, verbose=False)
    if not _same_rate(epochs, wanted):
        picked.resample(wanted.sfreq, verbose=False)  # removes what the new rate cannot hold; as in training
    eeg = picked.get_data(copy=False)[:, :, start : start + wanted.n_times] * factor
    eeg = checked_array(eeg, wanted, "what the epochs hold").astype(np.float32)
    if channel_std is not None:
        notes += _check_spread(eeg, wanted, channel_std)
    return eeg, notes


def _check_spread(eeg: np.ndarray, wanted: EEGFormat, channel_std: np.ndarray) -> list[str]:
    """Refuse epochs that hold nothing or are in another unit than MNE's, as a whole or in single channels."""
    dead, absurd, odd = odd_channels(eeg, channel_std, wanted.ch_names)
    unit = f"MNE's {FROM_MNE[str(wanted.unit)][2]} are turned into {UNIT_WORDS[str(wanted.unit)]}"
    mend = "mend them with epochs.interpolate_bads, or pass an array in the encoder's unit"
    if not eeg.any():
        raise DataError("The epochs hold nothing but zeros: check how they were made and read.")
    if is_odd(ratio := spread(eeg, channel_std)) and ratio:
        raise DataError(
            f"The epochs vary {ratio:.2g} times as much as the encoder's training trials once {unit}: they are in "
            "another unit than MNE's; scale their data first, or pass an array in the encoder's unit."
        )
    if absurd:
        raise DataError(
            f"Some channels of the epochs vary far from what they did in the encoder's training trials once {unit} "
            f"(how many times as much: {absurd}): scale those that are in another unit, and if they are bad, {mend}."
        )
    if dead:
        raise DataError(
            f"Channels of the epochs are constant within each of the first {min(LOOKED_AT, len(eeg))} trials, as if "
            f"nothing had been recorded there ({dead}): {mend}."
        )
    return [f"channels that vary more or less than in training, by this factor: {odd}"] if odd else []


def _samples(epochs: Any, names: list[str]) -> np.ndarray:
    """(n, n_chans, n_samples) of these channels, a copy, in MNE's unit."""
    if not len(epochs.events):
        raise DataError("The epochs hold no trial (epochs.drop_log says why): give at least one.")
    try:
        return epochs.get_data(picks=names, verbose=False)
    except Exception as error:  # MNE raises many kinds for a damaged file
        raise DataError(f"The epochs' samples cannot be read ({' '.join(str(error).split())[:200]}).") from error


def _as_array(wanted: EEGFormat) -> str:
    return f"an array (trials, {len(wanted.ch_names)}, {wanted.n_times}) of {wanted}"


def _unit_factor(wanted: EEGFormat) -> float:
    as_array = f"pass {_as_array(wanted)}"
    if wanted.unit in ("mvnn", "zscore"):
        needs = {
            "mvnn": "whitened by the noise covariance of their session's training trials, over several repetitions of "
            "each picture (eegrecon.data.mvnn)",
            "zscore": "divided by the standard deviation of the baseline over a session",
        }[wanted.unit]
        raise DataError(
            f"The encoder was trained on trials that were {needs}, which cannot be done from epochs alone: {as_array}, "
            f"its channels in the order {', '.join(wanted.ch_names)}."
        )
    facts = {"sfreq": wanted.sfreq, "window": wanted.tmin, "unit": wanted.unit}
    lacking = [name for name, value in facts.items() if value is None]
    lacking += [] if wanted.baseline_known else ["preprocessing (its baseline)"]
    if lacking:
        raise DataError(
            f"The encoder's manifest.json does not say its data's {', '.join(lacking)}, without which epochs cannot be "
            f"prepared as in training: {as_array}, or train the encoder again with this version."
        )
    return FROM_MNE[str(wanted.unit)][1]


def _channels(epochs: Any, wanted: EEGFormat) -> tuple[list[str], list[str]]:
    """The epochs' own names of the channels in the encoder's order, and notes."""
    there: list[str] = list(epochs.ch_names)
    folded: dict[str, list[str]] = {}
    for name in there:
        folded.setdefault(name.casefold(), []).append(name)
    found = {}
    for name in wanted.ch_names:
        like = folded.get(name.casefold(), [])  # FP1 is Fp1, unless both are there
        if name in there or len(like) == 1:
            found[name] = name if name in there else like[0]
    lacking = [name for name in wanted.ch_names if name not in found]
    if lacking:
        raise DataError(
            f"The epochs lack {len(lacking)} of the {len(wanted.ch_names)} channels that the encoder was trained on "
            f"({', '.join(lacking)}): rename, record or interpolate them (epochs.rename_channels, add_channels)."
        )
    names = list(found.values())
    kinds, _, mne_unit = FROM_MNE[str(wanted.unit)]
    types = dict(zip(there, epochs.get_channel_types(), strict=True))
    if odd := [f"{name} ({types[name]})" for name in names if types[name] not in kinds]:
        raise DataError(
            f"The encoder was trained on {'/'.join(sorted(kinds))} channels, which MNE holds in {mne_unit}, but the "
            f"epochs have {', '.join(odd)}: correct them with epochs.set_channel_types."
        )
    notes = []
    if extra := [name for name in there if name not in names]:
        notes.append(f"channels that the encoder does not know are left out: {', '.join(extra)}")
    if bad := [name for name in names if name in epochs.info["bads"]]:
        notes.append(f"channels marked as bad are used as they are, interpolate_bads mends them: {', '.join(bad)}")
    passed = (epochs.info["highpass"], epochs.info["lowpass"])
    if wanted.band is not None and (passed[0] < wanted.band[0] or passed[1] > wanted.band[1]):
        notes.append(
            f"training trials were filtered to {wanted.band[0]:g}–{wanted.band[1]:g} Hz, these epochs to "
            f"{passed[0]:g}–{passed[1]:g} Hz: filter the recording before cutting it"
        )
    return names, notes


def _first_sample(epochs: Any, wanted: EEGFormat, notes: list[str]) -> int:
    """Where the window starts, in samples after resampling."""
    assert wanted.sfreq is not None
    assert wanted.tmin is not None
    rate = float(epochs.info["sfreq"])
    length = len(epochs.times) if _same_rate(epochs, wanted) else round(len(epochs.times) * wanted.sfreq / rate)
    start = round((wanted.tmin - float(epochs.times[0])) * wanted.sfreq)
    if start < 0 or start + wanted.n_times > length:
        end = wanted.tmin + wanted.n_times / wanted.sfreq
        raise DataError(
            f"The epochs go from {epochs.times[0]:g} to {epochs.times[-1]:g} s ({len(epochs.times)} samples at "
            f"{rate:g} Hz), but the encoder sees {wanted.tmin:g} to {end:g} s after picture onset: cut longer epochs."
        )
    if rate < wanted.sfreq and not _same_rate(epochs, wanted):
        notes.append(f"the epochs have {rate:g} Hz, the training trials {wanted.sfreq:g} Hz: they are interpolated")
    return start


def _same_rate(epochs: Any, wanted: EEGFormat) -> bool:
    return wanted.sfreq is not None and abs(float(epochs.info["sfreq"]) - wanted.sfreq) < 1e-6 * wanted.sfreq


def _baseline(epochs: Any, wanted: EEGFormat) -> tuple[float, float] | None:
    """The baseline that is still to be subtracted."""
    step = 1 / float(epochs.info["sfreq"])
    first, last = float(epochs.times[0]), float(epochs.times[-1])
    if wanted.baseline is None:
        if epochs.baseline is not None:
            raise DataError(
                f"The epochs had their baseline {_seconds(epochs.baseline)} subtracted, which training did not do and "
                "which cannot be undone: cut them with baseline=None."
            )
        return None
    start, stop = wanted.baseline
    if first <= start + step and last >= stop - step / 2:
        return max(first, start), min(last, stop)
    done = epochs.baseline
    if done is not None and max(abs(done[0] - start), abs(done[1] - stop)) <= step:
        return None  # subtracted before they were cropped
    state = "no baseline was subtracted" if done is None else f"their baseline was {_seconds(done)}"
    raise DataError(
        f"Training subtracted the mean of {_seconds(wanted.baseline)}, but the epochs start at {first:g} s and "
        f"{state}: cut them from {start:g} s on, or with that baseline."
    )


def _seconds(span: Sequence[float]) -> str:
    return f"{span[0]:g} to {span[1]:g} s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
