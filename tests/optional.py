"""Packages that do not come with eegrecon: tests of what they give are skipped aloud where they do not work."""

from functools import cache

import pytest

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.braindecode import import_models


def skip_without_braindecode() -> None:
    """Skips the running test, with the reason, where braindecode is missing or cannot be imported."""
    if reason := _why_no_braindecode():
        pytest.skip(reason)


@cache
def _why_no_braindecode() -> str:
    try:
        import_models()
    except ConfigError as error:
        return str(error)
    return ""
