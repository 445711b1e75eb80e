"""Which pictures are for training, validation and test: a pure function whose result is hashed into every manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eegrecon.config import PROTOCOLS
from eegrecon.data.images import ImageSet
from eegrecon.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Split:
    """A named division of a set's pictures; validation holds out whole concepts.

    Attributes:
        set: Name of the set.
        protocol: `within_subject`, `leave_one_subject_out` or `joint`.
        subjects: Whose trials train and validate.
        val_concepts: How many training concepts are held out.
        split_seed: Which ones; never the run's seed.
        train: `image_index`, (n_train,) int64, ascending; likewise `val` and `test`.
        val: (n_val,).
        test: (n_test,).
        ids: Partition to the `image_id`s in the same order.
    """

    set: str
    protocol: str
    subjects: tuple[int, ...]
    val_concepts: int
    split_seed: int
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    ids: dict[str, list[str]]

    @property
    def sha256(self) -> str:
        """Of the three lists of image ids together."""
        return _sha256([f"{name}:{image_id}" for name, ids in self.ids.items() for image_id in ids])

    def describe(self) -> dict[str, Any]:
        """For the manifest: how the split was made, its sizes and the hashes of its id lists."""
        return {
            "protocol": self.protocol,
            "val_concepts": self.val_concepts,
            "split_seed": self.split_seed,
            "n_images": {name: len(ids) for name, ids in self.ids.items()},
            "sha256": {**{name: _sha256(ids) for name, ids in self.ids.items()}, "all": self.sha256},
        }

    def to_json(self) -> dict[str, Any]:
        """The whole split as plain values, for a `split.json` beside a manifest: `image_index` lists and hashes."""
        lists = {name: getattr(self, name).tolist() for name in ("train", "val", "test")}
        return {"set": self.set, "subjects": list(self.subjects), **self.describe(), **lists}


def held_out_concepts(n_concepts: int, val_concepts: int, split_seed: int = 0) -> list[int]:
    """Which training concepts validation holds out, as positions 0…n_concepts − 1 in THINGS order, ascending.

    They are the first `val_concepts` of a permutation drawn from `split_seed` alone: the same for every subject, and
    nested (the 30 for `val_concepts=30` are among the 60 for 60). Whoever trains weights that must not see them, asks
    here. NumPy may change its streams one day; the hash in every manifest would tell.

    Raises:
        ConfigError: Fewer than 0 concepts, or all of them, are asked for.

    >>> held_out_concepts(10, 3)
    [2, 4, 6]
    """
    if not 0 <= val_concepts < n_concepts:
        raise ConfigError(
            f"data.split.val_concepts is {val_concepts}, but it must be at least 0 and below {n_concepts}, the number "
            "of training concepts."
        )
    return sorted(np.random.default_rng(split_seed).permutation(n_concepts)[:val_concepts].tolist())


def concept_folds(n_concepts: int, folds: int, split_seed: int = 0) -> list[int]:
    """Which of `folds` groups each training concept belongs to, 0…folds − 1, in THINGS order; sizes differ by one.

    Drawn from `split_seed` and `folds`: the same for every subject and run.

    Raises:
        ConfigError: There are fewer than two groups, or more than concepts.

    >>> concept_folds(7, 3)
    [2, 0, 1, 1, 0, 2, 0]
    """
    if not 2 <= folds <= n_concepts:
        raise ConfigError(
            f"cross_fit is {folds}, but it must be at least 2 and at most {n_concepts}, the number of concepts that "
            "are trained on."
        )
    found = np.empty(n_concepts, dtype=np.int64)
    found[np.random.default_rng((split_seed, folds)).permutation(n_concepts)] = np.arange(n_concepts) % folds
    return found.tolist()


def picture_folds(images: ImageSet, pictures: np.ndarray, folds: int, split_seed: int = 0) -> np.ndarray:
    """`concept_folds` of the concepts that these training pictures show, for each picture, (n,) int64.

    Raises:
        ConfigError: As `concept_folds`.
    """
    concepts, which = np.unique(images.concept_index[pictures], return_inverse=True)
    return np.array(concept_folds(len(concepts), folds, split_seed), dtype=np.int64)[which]


def check_subjects(protocol: str, subjects: Sequence[int], test_subject: int | None) -> None:
    """Check that the protocol, the subjects that are trained on and the one that is tested go together.

    Args:
        protocol: One of `PROTOCOLS`.
        subjects: Who is trained on.
        test_subject: Who is tested; None: those who are trained on.

    Raises:
        DataError: A subject comes twice.
        ConfigError: The tested one is trained on though left out, or the other way round.
    """
    if len(set(subjects)) != len(subjects):
        raise DataError(f"The trial stores are of subjects {list(subjects)}: each subject may come only once.")
    left_out = protocol == "leave_one_subject_out"
    if (test_subject not in (None, *subjects)) != left_out:
        wanted = "a subject that is not trained on" if left_out else "a subject that is trained on"
        raise ConfigError(
            f"data.protocol {protocol} tests {wanted}, but data.test_subject is {test_subject} and training is on "
            f"{', '.join(map(str, subjects))}: correct data.test_subject or data.subjects."
        )


def make_split(
    images: ImageSet,
    trials_index_train: np.ndarray,
    *,
    set: str,
    protocol: str,
    subject: int | list[int] | tuple[int, ...],
    val_concepts: int,
    split_seed: int = 0,
    fold: tuple[int, int] | None = None,
) -> Split:
    """Hold out whole training concepts for validation; which ones, `held_out_concepts` says.

    Args:
        images: The set's pictures.
        trials_index_train: `image_index` of the training pictures that have trials, (n,), repeats allowed.
        set: Name of the set.
        protocol: `within_subject` (one subject), `leave_one_subject_out` or `joint` (the same pictures are held out of
            all subjects that are trained on).
        subject: Whose trials train and validate; one number or several.
        val_concepts: How many concepts to hold out; 0 for none.
        split_seed: Which draw.
        fold: (k, K): training also leaves out fold k of the K of `picture_folds`; validation and test stay.

    Raises:
        ConfigError: The protocol is not known, does not fit the subjects, or too many concepts are asked for.
        DataError: A held-out concept has no trials, or a trial shows a picture that is no training picture.
    """
    subjects = (subject,) if isinstance(subject, int) else tuple(subject)
    if protocol not in PROTOCOLS:
        raise ConfigError(f"data.protocol is {protocol!r}, expected one of {', '.join(PROTOCOLS)}.")
    if protocol == "within_subject" and len(subjects) != 1:
        raise ConfigError(
            f"data.protocol within_subject needs exactly one subject, but data.subjects is {list(subjects)}."
        )
    index = np.unique(np.asarray(trials_index_train, dtype=np.int64))
    if not np.isin(index, images.train_index).all():
        raise DataError(f"Some training trials show no training picture of {images.set_root}: make the trials again.")
    concepts = np.unique(images.concept_index[images.train_index])
    held_out = concepts[held_out_concepts(len(concepts), val_concepts, split_seed)]
    is_val = np.isin(images.concept_index[index], held_out)
    if len(found := np.unique(images.concept_index[index[is_val]])) != val_concepts:
        raise DataError(
            f"Of the {val_concepts} validation concepts of the set {set!r}, subject {', '.join(map(str, subjects))} "
            f"has trials for {len(found)} only: choose another data.split.split_seed or complete the trials."
        )
    train = index[~is_val]
    if fold is not None:
        train = train[picture_folds(images, train, fold[1], split_seed) != fold[0]]
    parts = {"train": train, "val": index[is_val], "test": images.test_index}
    return Split(
        set=set,
        protocol=protocol,
        subjects=subjects,
        val_concepts=val_concepts,
        split_seed=split_seed,
        ids={name: images.ids(part) for name, part in parts.items()},
        **parts,
    )


def gallery_of(images: ImageSet, image_index: np.ndarray) -> np.ndarray:
    """The first picture of each concept among these, (n_concepts,) int64, ascending: the retrieval candidates."""
    index = np.unique(np.asarray(image_index, dtype=np.int64))
    _, first = np.unique(images.concept_index[index], return_index=True)
    return np.sort(index[first])


def full_gallery(images: ImageSet, image_index: np.ndarray, split: Split) -> np.ndarray:
    """`gallery_of` these validation pictures, which must show every concept that the split holds out.

    Raises:
        DataError: Some concepts have no picture among them, so that retrieval would be easier than its name says.
    """
    gallery = gallery_of(images, image_index)
    if len(gallery) < split.val_concepts:
        raise DataError(
            f"Of the {split.val_concepts} validation concepts, only {len(gallery)} have trials of data.sessions and "
            "data.keep_repetitions: choose more of them, or another data.split.split_seed."
        )
    return gallery


def _sha256(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
