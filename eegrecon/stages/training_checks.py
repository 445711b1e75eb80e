"""What a `trainer` or `select` block may not ask of a stage that trains and publishes one epoch; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Trainer flags that would leave no epoch to publish, or one chosen on something else than the whole validation split.
NEEDED_FLAGS: dict[str, tuple[Any, ...]] = {
    "fast_dev_run": (False, 0),
    "enable_checkpointing": (True, None),
    "limit_val_batches": (1.0, None),
    "val_check_interval": (1.0, None),
    "use_distributed_sampler": (False,),
}
EVERY_EPOCH = {"check_val_every_n_epoch": (1,)}


def flag_problems(stage: str, trainer: Mapping[str, Any], needed: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Flags of the trainer block that have another value than the stage needs.

    Args:
        stage: The verb, for the message.
        trainer: The config's block.
        needed: Flag to the values that will do, the stage's own first.
    """
    return [
        f"trainer.{name} is {trainer[name]!r}, but {stage} needs {allowed[0]!r}"
        for name, allowed in needed.items()
        if name in trainer and trainer[name] not in allowed
    ]


def set_by_stage(trainer: Mapping[str, Any]) -> list[str]:
    """Flags that a config cannot set, because the stage does."""
    asked = (name for name in ("callbacks", "logger") if trainer.get(name) not in (None, True))
    return [f"trainer.{name} is set by the stage" for name in asked]


def selection_problems(cfg: Any, modes: Mapping[str, str]) -> list[str]:
    """What is wrong with `select`, and with the split and trials that it needs.

    Args:
        cfg: A config with `data` and `select`.
        modes: What may be monitored, and whether more or less of it is better.
    """
    problems, select = [], cfg.select
    n_way = cfg.data.split.val_concepts
    if n_way < 2:
        problems.append(f"data.split.val_concepts is {n_way}, but an epoch is selected on at least 2 concepts")
    if select.monitor not in modes:
        problems.append(f"select.monitor is {select.monitor!r}, expected one of {', '.join(modes)}")
    elif select.mode != modes[select.monitor]:
        problems.append(f"select.mode is {select.mode!r}, which would select the worst {select.monitor}")
    if select.patience and select.epoch == "last":
        problems.append("select.epoch is 'last', a fixed number of epochs, but select.patience may stop before")
    if cfg.data.keep_minutes is not None and cfg.data.keep_minutes <= 0:
        problems.append(f"data.keep_minutes is {cfg.data.keep_minutes}, but it must be above 0")
    return problems


def process_count(trainer: Mapping[str, Any]) -> int:
    """How many processes the trainer block asks for, where it says so by a number."""
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    count = len(devices) if isinstance(devices, list | tuple) else devices
    return max(1, count) * nodes if isinstance(count, int) and isinstance(nodes, int) else 1
