"""eegrecon: from EEG to the picture that was seen, three trained stages and one command.

Importing the package costs nothing; `eegrecon.load(stage_dir)` and `eegrecon.EEGToImagePipeline` import torch when they
are asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eegrecon.loading import load
    from eegrecon.pipeline import EEGToImagePipeline

__version__ = "0.1.0"
__all__ = ["EEGToImagePipeline", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from eegrecon.loading import load

        return load
    if name == "EEGToImagePipeline":
        from eegrecon.pipeline import EEGToImagePipeline

        return EEGToImagePipeline
    raise AttributeError(f"module 'eegrecon' has no attribute {name!r}")
