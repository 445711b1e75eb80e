"""A name out of a registry with arguments: the smallest block of a config."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Choice:
    """One thing chosen by name from a registry, with its constructor's arguments."""

    name: str = MISSING
    args: dict[str, Any] = field(default_factory=dict)
