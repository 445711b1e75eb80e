"""How stages train: the blocks of `config_schema` for loading, selecting, augmenting and initial weights."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class LoaderConfig:
    """Loader settings, none of which but `batch_size` changes a batch; it counts rows over all processes together."""

    batch_size: int = field(default=MISSING, metadata={"minimum": 1})
    num_workers: int = field(default=0, metadata={"minimum": 0})
    # Put the rows on the training device once (CPU: in memory): if they take at most half of what is free, or true.
    on_device: Any = field(default="auto", metadata={"choices": ("auto", True, False)})


@dataclass(frozen=True)
class SelectConfig:
    """Which checkpoint becomes `model.safetensors`: the best on `monitor`, or the last (train-encoder only)."""

    monitor: str = MISSING
    mode: str = field(default="max", metadata={"choices": ("max", "min")})
    epoch: str = field(default="best", metadata={"choices": ("best", "last")})
    # Stop when `monitor` has not got better for so many epochs; 0: train all epochs (train-encoder only).
    patience: int = field(default=0, metadata={"minimum": 0})


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to training trials alone, all off by default; see `data.augment`."""

    time_shift: float = field(default=0.0, metadata={"minimum": 0})  # seconds, either way
    channel_dropout: float = field(default=0.0, metadata={"minimum": 0, "maximum": 1})
    noise: float = field(default=0.0, metadata={"minimum": 0})  # relative to each channel's standard deviation
    mixup: float = field(default=0.0, metadata={"minimum": 0})  # alpha of Beta(alpha, alpha)


@dataclass(frozen=True)
class InitConfig:
    """Weights to start from: a finished run of the same encoder on the same channels and target ("": none)."""

    run: str = ""
