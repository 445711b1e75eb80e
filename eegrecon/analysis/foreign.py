"""What `inspect` says of other people's files: recordings, feature files, checkpoints. Nothing in them is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eegrecon.analysis.contents import (
    BLOCK_BYTES,
    Contents,
    Progress,
    blocks_of,
    channels_text,
    check,
    time_text,
    with_scan,
)
from eegrecon.analysis.evoked import TrialScan
from eegrecon.data.pickles import ArrayRef, map_rows, read_pickle
from eegrecon.data.recording_checks import check_file
from eegrecon.errors import DataError

# Keys that tell the published layouts apart (facts of EEG_Image_decode, eeg_encoding, UBP and THINGS-MEG).
RECORDINGS = {
    "preprocessed_eeg_data": "preprocessed EEG (THINGS-EEG2 layout)",
    "eeg": "preprocessed EEG (UBP layout)",
    "meg_data": "preprocessed MEG (THINGS-MEG layout of EEG_Image_decode)",
}
RAW = "raw_eeg_data"
TARGET_EVENTS = 99999  # THINGS-EEG2 raw: catch trials
MOST_EVENTS = 2000  # events averaged for the picture of a raw session
RAW_WINDOW = (-0.2, 1.0)
MICRO = 1e6  # raw sessions hold volts, as MNE gives them


def pickled(path: Path, progress: Progress) -> Contents:
    """A pickle, an `.npy` that holds one object, or a torch file, read by the restricted reader."""
    values = read_pickle(path)
    if not isinstance(values, Mapping):
        found = Contents(f"a pickled {type(values).__name__}")
        found.problems.append(
            f"{path} holds a {type(values).__name__}, expected a dictionary such as "
            f"{{preprocessed_eeg_data, ch_names, times}}: eegrecon does not know this file."
        )
        return found
    for key, kind in RECORDINGS.items():
        if key in values:
            return _trials(path, values, key, kind, progress)
    if RAW in values:
        return _raw(path, values, progress)
    found = Contents("a pickled dictionary", {str(key): _describe(value) for key, value in values.items()})
    found.problems.append(
        f"{path} has the keys {', '.join(map(str, values)) or 'none'}, expected one of "
        f"{', '.join([*RECORDINGS, RAW])}: eegrecon does not know this file."
    )
    return found


def _trials(path: Path, values: Mapping[str, Any], key: str, kind: str, progress: Progress) -> Contents:
    """Trials in an array whose last axes are channels and samples; what is wrong is said as `prepare-data` would."""
    found = Contents(kind)
    found.facts["data"] = f"{key} {_describe(values[key])}"
    found.recording = item = check(found, lambda: check_file(path, key))
    if item is None:
        return found
    found.facts |= {
        "channels": channels_text(item.ch_names),
        "time": time_text(item.tmin, item.data.shape[-1], item.sfreq),
        "other keys": ", ".join(str(name) for name in values if name not in (key, "ch_names", "times")) or "none",
    }
    unit = "zscore" if key == "meg_data" else "mvnn"  # ds004212's epochs are baseline z-scores
    scan = TrialScan(list(item.ch_names), item.sfreq, item.tmin, unit)
    for block in _rows(item.data, progress):
        scan.add(block.reshape(-1, *item.data.shape[-2:]))
    return with_scan(found, scan)


def _raw(path: Path, values: Mapping[str, Any], progress: Progress) -> Contents:
    """A continuous session: channels in µV (or V) and a stimulus channel with the conditions' codes."""
    found = Contents("raw EEG session (THINGS-EEG2 layout)")
    lacking = [name for name in ("ch_names", "ch_types", "sfreq") if name not in values]
    data = values[RAW]
    shape = tuple(getattr(data, "shape", ()))
    if lacking or len(shape) != 2 or len(values.get("ch_names", ())) != shape[0]:
        found.problems.append(
            f"{path} must hold {RAW} (channels, samples) with ch_names, ch_types and sfreq, but {RAW} has the shape "
            f"{shape} for {len(values.get('ch_names', ()))} names and {', '.join(lacking) or 'nothing'} is missing: "
            "get the file again."
        )
        return found
    check(found, lambda: check_file(path, RAW))
    if found.problems:
        return found
    names, types = [str(name) for name in values["ch_names"]], [str(kind) for kind in values["ch_types"]]
    sfreq = float(values["sfreq"])
    found.facts |= {
        "data": f"{RAW} {shape}, {data.dtype}",
        "channels": channels_text(names),
        "time": f"{shape[1] / sfreq / 60:.1f} minutes at {sfreq:g} Hz",
        "filter": f"{values.get('highpass', 'unknown')} to {values.get('lowpass', 'unknown')} Hz, as recorded",
    }
    if types.count("stim") != 1:
        found.problems.append(
            f"{path} has {types.count('stim')} channels of type stim, expected one with the pictures' codes: get the "
            "file again."
        )
        return found
    signal = data.map() if isinstance(data, ArrayRef) else data
    codes = np.asarray(signal[types.index("stim")])
    onsets = 1 + np.flatnonzero((codes[1:] != 0) & (codes[:-1] == 0))
    shown = onsets[codes[onsets] != TARGET_EVENTS]
    conditions = np.unique(codes[shown])
    found.facts["events"] = (
        f"{len(shown)} pictures of {len(conditions)} conditions, {len(onsets) - len(shown)} catch trials"
    )
    if not len(shown):
        found.problems.append(f"the stim channel of {path} has no picture onset: get the file again.")
        return found
    picks = [i for i, kind in enumerate(types) if kind == "eeg"]
    scan = TrialScan([names[i] for i in picks], sfreq, RAW_WINDOW[0], "uV")
    before, after = (round(t * sfreq) for t in RAW_WINDOW)
    inside = shown[(shown + before >= 0) & (shown + after <= shape[1])]
    for i, onset in enumerate(chosen := inside[:: max(1, len(inside) // MOST_EVENTS)]):
        progress(i, len(chosen))
        trial = np.asarray(signal[picks, onset + before : onset + after], dtype=np.float64)
        scan.add(MICRO * (trial - trial[:, :-before].mean(axis=1, keepdims=True))[None])
    if scan.n_trials and not 0.1 < np.median(scan.rms) < 1e4:
        found.problems.append(
            f"the trials in {path} have {np.median(scan.rms):.3g} µV RMS if the numbers are volts, as they are in the "
            "published files; expected some 10: check the unit."
        )
    return with_scan(found, scan)


def tensors(path: Path, progress: Progress) -> Contents:
    """A `.safetensors` file: names, shapes and whether every number is finite."""
    from safetensors import SafetensorError, safe_open

    found = Contents("safetensors file")
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            for i, name in enumerate(names):
                progress(i, len(names))
                _tensor(found, path, name, file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        found.problems.append(f"{path} is no readable safetensors file ({error}): copy or make it again.")
    return found


def torch_file(path: Path, progress: Progress) -> Contents:
    """A torch file of plain tensors (features, a state dict), through `torch.load(weights_only=True)`."""
    import torch

    found = Contents("torch file")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path} is a torch file with more than plain tensors and numbers in it ({reason}); eegrecon does not "
            "execute what is in it: ask its author for a safetensors file."
        ) from error
    items = values.items() if isinstance(values, Mapping) else [("tensor", values)]
    flat = [
        (f"{name}.{inner}", part)
        for name, value in items
        for inner, part in (value.items() if isinstance(value, Mapping) else [("", value)])
    ]
    for i, (name, value) in enumerate(flat):
        progress(i, len(flat))
        if isinstance(value, torch.Tensor):
            _tensor(found, path, name.rstrip("."), value.detach().float().numpy())
        else:
            found.facts[name.rstrip(".")] = _describe(value)
    if {"img_features", "text_features"} & {str(name) for name, _ in items}:
        found.kind = "CLIP feature file (EEG_Image_decode layout)"
    return found


def plain_array(path: Path, progress: Progress) -> Contents:
    """A plain `.npy` array."""
    found = Contents("NumPy array")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        found.problems.append(f"{path} is no readable .npy file ({error}): copy or make it again.")
        return found
    found.facts["data"] = f"{array.shape}, {array.dtype}"
    if array.dtype.kind == "f":
        bad = sum(int((~np.isfinite(block)).sum()) for block in blocks_of(array, progress))
        if bad:
            found.problems.append(
                f"{path} holds {bad} NaN or infinite values, where only finite numbers may stand: make it again."
            )
    return found


def fif_epochs(path: Path, progress: Progress) -> Contents:
    """MNE epochs (`-epo.fif`), read block by block."""
    import mne

    found = Contents("MNE epochs")
    try:
        epochs = mne.read_epochs(path, preload=False, verbose="error")
    except Exception as error:
        found.problems.append(f"{path} cannot be read by MNE ({str(error).splitlines()[0]}): copy it again.")
        return found
    kinds = epochs.get_channel_types()
    main = "mag" if "mag" in kinds else "eeg"
    factor, unit = (1.0, "zscore") if main == "mag" else (MICRO, "uV")
    picks = [i for i, kind in enumerate(kinds) if kind == main]
    names = [epochs.ch_names[i] for i in picks]
    found.facts |= {
        "trials": f"{len(epochs.events)}, {len(np.unique(epochs.events[:, 2]))} conditions",
        "channels": channels_text(names),
        "time": time_text(epochs.times[0], len(epochs.times), epochs.info["sfreq"]),
    }
    scan = TrialScan(names, epochs.info["sfreq"], float(epochs.times[0]), unit)
    step = max(1, BLOCK_BYTES // (8 * len(epochs.ch_names) * len(epochs.times)))
    for start in range(0, len(epochs.events), step):
        progress(start, len(epochs.events))
        try:
            scan.add(factor * epochs[start : start + step].get_data(picks=picks, verbose="error"))
        except (OSError, ValueError) as error:
            found.problems.append(
                f"{path} is truncated or damaged near trial {start} of {len(epochs.events)} ({error}): copy it again."
            )
            return found
    return with_scan(found, scan)


def _rows(data: Any, progress: Progress) -> Any:
    """Rows of an array or of an array inside a file, some 64 MB at a time."""
    if not isinstance(data, ArrayRef):
        yield from blocks_of(np.asarray(data), progress)
        return
    step = max(1, BLOCK_BYTES * data.shape[0] // max(1, data.nbytes))
    for start in range(0, data.shape[0], step):
        progress(start, data.shape[0])
        yield map_rows(data, start, min(start + step, data.shape[0]))


def _tensor(found: Contents, path: Path, name: str, value: np.ndarray) -> None:
    found.facts[name] = f"{tuple(value.shape)}, {value.dtype}"
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        found.problems.append(
            f"{name!r} in {path} holds {int((~np.isfinite(value)).sum())} NaN or infinite values, where only finite "
            "numbers may stand: make the file again."
        )


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{tuple(shape)}, {value.dtype}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else str(value)
