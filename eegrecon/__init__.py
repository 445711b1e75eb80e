"""eegrecon: from EEG to the picture that was seen, three trained stages and one command.

Importing the package costs nothing; `eegrecon.load(stage_dir)` imports torch when it is called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eegrecon.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from eegrecon.loading import load

        return load
    raise AttributeError(f"module 'eegrecon' has no attribute {name!r}")
