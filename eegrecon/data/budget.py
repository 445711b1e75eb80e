"""A few minutes of a subject: which training trials stand for a short recording."""

from dataclasses import replace

import numpy as np

from eegrecon.data.partition import Partition
from eegrecon.errors import ConfigError


def trials_in(minutes: float, seconds_per_trial: float) -> int:
    """How many trials are recorded in so many minutes.

    >>> trials_in(5, 0.2)
    1500
    """
    return int(minutes * 60 / seconds_per_trial + 1e-9)


def within_budget(
    partition: Partition, trials: int, *, train: np.ndarray, gallery: np.ndarray, seed: int = 0
) -> Partition:
    """Keep so many training trials of a subject, and no others.

    Earlier sessions come first. In which order the trials of a session were recorded is not in the stores, so within a
    session they are drawn at random. Validation is paid for out of the same budget: one trial of each picture of its
    gallery; all others are of training pictures.

    Args:
        partition: A subject's training side.
        trials: How many.
        train: `image_index` of the training pictures.
        gallery: `image_index` of the validation gallery.
        seed: The split's: the same trials for every run.

    Raises:
        ConfigError: The budget is too small for validation and training, or there are fewer trials.
    """
    used = partition.used
    if trials < 2 * len(gallery):
        raise ConfigError(
            f"data.keep_minutes leaves {trials} trials, but validation takes {len(gallery)} of them (one a held-out "
            f"concept) and training needs as many: keep more minutes or lower data.split.val_concepts."
        )
    order = _order(partition.session, used, np.random.default_rng((seed, trials)))
    picture = partition.image_index[order[:, 0]]
    _, first = np.unique(picture, return_index=True)  # the first trial of every picture
    for_gallery = first[np.isin(picture[first], gallery)]
    for_training = np.flatnonzero(np.isin(picture, train))[: trials - len(for_gallery)]
    if len(for_training) < trials - len(for_gallery):
        raise ConfigError(
            f"data.keep_minutes asks for {trials} trials, but {partition.path} has {int(used.sum())} that may be used: "
            "keep fewer minutes."
        )
    keep = np.zeros_like(used)
    chosen = order[np.concatenate([for_gallery, for_training])]
    keep[chosen[:, 0], chosen[:, 1]] = True
    return replace(partition, keep=keep)


def _order(session: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions (row, repetition) of the used trials: by session, at random within one."""
    where = np.argwhere(used)
    where = where[rng.permutation(len(where))]
    return where[np.argsort(session[where[:, 0], where[:, 1]], kind="stable")]
