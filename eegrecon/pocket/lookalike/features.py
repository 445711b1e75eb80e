"""Look-alikes of `ViT-H-14_features_{train,test}.pt`: the right keys, shapes and norms, another network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eegrecon.artifacts import atomic_write
from eegrecon.pocket.lookalike.pictures import LookAlikeSet

DIM = 1024
# Unnormalised ViT-H-14 embeddings of the 200 test pictures have this mean norm and spread (atm.md 3).
NORM, SPREAD = 22.40, 0.701
FILES = {"train": "ViT-H-14_features_train.pt", "test": "ViT-H-14_features_test.pt"}


def write_features(
    out: Path, pictures: LookAlikeSet, image_features: np.ndarray | None, *, normalised: bool, seed: int = 0
) -> list[Path]:
    """Write both feature files: dicts of float32 tensors, `img_features` a row a picture, `text_features` a concept.

    They are no ViT-H-14 features: a fixed random projection of another network's, or, without any, random vectors that
    pictures of one concept share in part.

    Args:
        out: the folder.
        pictures: the set.
        image_features: ``(n_train + n_test, d)`` in row order, or None.
        normalised: length one, as the released files, or ViT-H's own lengths. Text features always have length one.
        seed: of the random vectors.
    """
    import torch

    rng = np.random.default_rng([seed, DIM])
    concept: np.ndarray = np.concatenate(
        [np.repeat(np.arange(pictures.concepts), pictures.exemplars), pictures.concepts + np.arange(pictures.n_test)]
    )
    if image_features is None:
        shared = rng.standard_normal((concept.max() + 1, DIM))
        vectors = 0.8 * shared[concept] + 0.6 * rng.standard_normal((len(concept), DIM))
    else:
        centred = image_features - image_features[: pictures.n_train].mean(axis=0)
        # CLIP's embeddings share a direction: two random pictures have a cosine near 0.5, not 0.
        vectors = centred @ rng.standard_normal((centred.shape[1], DIM))
        vectors = unit(vectors) + unit(rng.standard_normal((1, DIM)))
    images = unit(vectors)
    text = np.zeros((concept.max() + 1, DIM))
    np.add.at(text, concept, images)
    text = unit(unit(text) + 0.5 * unit(rng.standard_normal((len(text), DIM))))
    if not normalised:
        images = images * (NORM + SPREAD * rng.standard_normal((len(images), 1)))
    split = {"train": (pictures.n_train, pictures.concepts), "test": (None, None)}
    files, start, first = [], 0, 0
    for side, name in FILES.items():
        stop, last = split[side]
        value = {
            "text_features": torch.from_numpy(text[first:last].astype(np.float32)),
            "img_features": torch.from_numpy(images[start:stop].astype(np.float32)),
        }
        with atomic_write(out / name) as file:
            torch.save(value, file)
        files.append(out / name)
        start, first = pictures.n_train, pictures.concepts
    return files


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale every row of ``(n, d)`` to length one."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
