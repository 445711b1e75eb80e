"""What one recording must be for `prepare-data` to take it, checked without its trials and without pictures."""

from __future__ import annotations

from pathlib import Path

from eegrecon.data.preprocess import KEY as RAW_KEY
from eegrecon.data.preprocess import PreprocessParams
from eegrecon.data.preprocess import open_recording as open_raw
from eegrecon.data.sources import Recording, open_recording
from eegrecon.data.things_eeg2 import check_recording
from eegrecon.data.things_meg import AXES as MEG_AXES
from eegrecon.data.things_meg import SFREQ as MEG_SFREQ


def check_file(path: Path, key: str) -> Recording | None:
    """Open a file as its source would, and check all that does not need the set's pictures.

    Args:
        path: The file.
        key: Under which it holds its trials, which tells its layout.

    Returns:
        The recording; None for a raw session, which is another kind of thing.

    Raises:
        DataError: What `prepare-data` would say.
    """
    if key == RAW_KEY:
        open_raw(path, PreprocessParams())
        return None
    if key == "meg_data":
        return open_recording(path, key, axes=MEG_AXES, sfreq=MEG_SFREQ)
    return check_recording(path, key)
