"""The random numbers of a pipeline's pictures: those of `reconstruct`, from whatever a caller gives."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, cast

import torch

from eegrecon.diffusion.samplers import row_generators
from eegrecon.errors import ConfigError

Noise = tuple[torch.Generator, torch.Generator]  # of one picture: for the prior, and for the picture


def picture_noise(seed: int, subject: Sequence[int], image_index: Sequence[int], draws: int = 1) -> list[list[Noise]]:
    """For each trial, for each draw: a generator for the prior and one for the picture, with the keys of `reconstruct`.

    Args:
        seed: Any integer.
        subject: (n,) whose trials they are.
        image_index: (n,) what tells one trial from another.
        draws: Pictures of each trial.
    """
    rows = list(zip(subject, image_index, strict=True))
    priors = [row_generators(seed, [who] * draws, [index] * draws, range(draws)) for who, index in rows]
    pictures = [row_generators(seed, [index] * draws, range(draws)) for _, index in rows]
    return [list(zip(*pair, strict=True)) for pair in zip(priors, pictures, strict=True)]


def noise_of(generator: Any, subjects: Sequence[int], draws: int | None) -> list[list[Noise]]:
    """A generator for prior and picture, for each draw of each trial, from whatever the caller gave.

    Args:
        generator: An integer, a `torch.Generator` (asked for a seed), None (torch's global random numbers), or a list
            of one a trial, each an integer, a `torch.Generator` or one entry of what `picture_noise` gives.
        subjects: (n,) whose trials they are.
        draws: Pictures of each trial; None: as many as the list's entries have, or 1.

    Raises:
        ConfigError: It is none of these, or not as many as there are trials or draws.
    """
    n, count = len(subjects), draws or 1
    if not isinstance(generator, list | tuple):
        return picture_noise(_seed(generator), subjects, range(n), count)
    if len(generator) != n:
        raise ConfigError(f"generator has {len(generator)} entries for {n} trials: give one for each trial.")
    found = []
    for item, who in zip(generator, subjects, strict=True):
        if not isinstance(item, list | tuple):
            found.append(picture_noise(_seed(item), [who], [0], count)[0])
            continue
        if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in item):
            raise ConfigError(
                "generator has a list for a trial, expected for each draw a pair of torch.Generators, for prior and "
                "picture: make it with EEGToImagePipeline.generators(…)."
            )
        wanted = len(found[0]) if draws is None and found else draws or len(item)
        if len(item) != wanted:
            raise ConfigError(
                f"generator has {len(item)} draws for a trial of which {wanted} pictures are wanted: make it with "
                f"EEGToImagePipeline.generators(…, draws={wanted})."
            )
        found.append(list(item))
    return found


def _seed(generator: Any) -> int:
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    try:
        return operator.index(cast(SupportsIndex, generator))
    except TypeError as error:
        raise ConfigError(
            f"generator is {type(generator).__name__}, expected an integer, a torch.Generator or a list of one a trial."
        ) from error


def subject_ids(subject: int | Sequence[int], n: int) -> list[int]:
    """One id for each of n trials.

    Raises:
        ConfigError: They are no ids from 0, or not as many.
    """
    try:
        several = subject if isinstance(subject, Iterable) else [subject] * n
        ids = [operator.index(one) for one in several]
    except TypeError as error:
        raise ConfigError(f"subject is {subject!r}, expected an id from 1, 0 for unknown, or one a trial.") from error
    if len(ids) != n or min(ids, default=0) < 0:
        raise ConfigError(f"subject is {subject!r}, expected an id from 1, 0 for unknown, or {n} of them.")
    return ids
