"""What a `data` block must say beyond keys and types, and what `--subject N` means in it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from eegrecon.config_schema import PROTOCOLS, REGIONS, STAGES
from eegrecon.config_sources import did_you_mean

TRAINING = ("train-encoder", "train-prior", "train-low-level")


def subject_override(stage: str, values: Mapping[str, Any], subject: int) -> str:
    """The override that `--subject N` stands for: the one subject, or the one that is tested beside others.

    Args:
        stage: A verb.
        values: The merged values, for their protocol.
        subject: N.
    """
    block = values.get("data")
    protocol = block.get("protocol", PROTOCOLS[0]) if isinstance(block, Mapping) else PROTOCOLS[0]
    several = protocol in PROTOCOLS[1:] and "protocol" in _data_fields(stage)
    return f"data.test_subject={subject}" if several else f"data.subjects=[{subject}]"


def check_data(data: DictConfig, stage: str, where: str, problems: dict[str, str]) -> None:
    """Add to `problems`, by dotted key, what is wrong with a `DataConfig`; drop what does not matter to the stage.

    Under `joint` nothing about training depends on which subject is tested later, so training forgets `test_subject`
    once it is known to be one of the subjects: every tested subject finds the same encoder.
    """

    def add(key: str, text: str) -> None:
        problems.setdefault(f"{where}{key}", f"'{where}{key}' {text}")

    window = data.window
    if len(window) != 2 or not window[0] < window[1]:
        add("window", f"must be [start, stop] in seconds with start < stop, but it is {window}")
    if not _are_channels(data.channels):
        add(
            "channels",
            f"must be all or a list of channel names or {{region: one or more of {', '.join(REGIONS)}}}, but it is "
            f"{data.channels!r}",
        )
    if isinstance(data.repetitions, str) and data.repetitions not in ("each", "average"):
        known = did_you_mean(data.repetitions, ("each", "average", "{average: k}"))
        add("repetitions", f"is {data.repetitions!r}, which is not known ({known})")
    elif not isinstance(data.repetitions, str) and not _is_average_of(data.repetitions):
        add("repetitions", f"must be each, average or {{average: k}} with k from 2, but it is {data.repetitions!r}")
    if data.sessions != "all" and not _numbers(data.sessions, lowest=1):
        add("sessions", f"must be all or a list of session numbers from 1, but it is {data.sessions!r}")
    keep = data.keep_repetitions
    if keep != "all" and not _numbers(keep, lowest=0) and not (_is_int(keep) and keep > 0):
        add("keep_repetitions", f"must be all, a count or a list of numbers from 0, but it is {keep!r}")
    if not OmegaConf.is_missing(data, "subjects"):
        _check_subjects(data, add)
        if stage in TRAINING and data.protocol == "joint" and not problems:
            data.test_subject = None


def _check_subjects(data: DictConfig, add: Any) -> None:
    subjects, tested = list(data.subjects), data.test_subject
    if not subjects:
        add("subjects", "must name at least one subject, but it is empty")
    elif data.protocol == "within_subject":
        if tested is not None:
            add("test_subject", f"is {tested}, but within_subject tests the subject it is trained on: leave it out")
    elif data.protocol in PROTOCOLS:
        if len(subjects) < 2 or len(set(subjects)) != len(subjects):
            add("subjects", f"must name two or more different subjects for {data.protocol}, but it is {subjects}")
        elif data.protocol == "leave_one_subject_out" and tested is None:
            add("test_subject", "has no value: say which subject is left out (--subject N)")
        elif tested is not None and tested not in subjects:
            add("test_subject", f"is {tested}, which is none of data.subjects ({', '.join(map(str, subjects))})")


def _data_fields(stage: str) -> set[str]:
    block = next((item.type for item in dataclasses.fields(STAGES[stage].schema) if item.name == "data"), None)
    return {item.name for item in dataclasses.fields(block)} if isinstance(block, type) else set()


def _are_channels(value: Any) -> bool:
    if OmegaConf.is_dict(value):
        regions = value.get("region")
        regions = [regions] if isinstance(regions, str) else regions
        return set(value) == {"region"} and bool(regions) and all(name in REGIONS for name in regions)
    return value == "all" or (
        OmegaConf.is_list(value) and len(value) > 0 and all(isinstance(name, str) for name in value)
    )


def _is_average_of(value: Any) -> bool:
    return OmegaConf.is_dict(value) and set(value) == {"average"} and _is_int(value.average) and value.average > 1


def _numbers(value: Any, lowest: int) -> bool:
    return OmegaConf.is_list(value) and len(value) > 0 and all(_is_int(item) and item >= lowest for item in value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
