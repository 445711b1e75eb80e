"""Feature files that another project published, such as `ViT-H-14_features_{train,test}.pt` of EEG_Image_decode.

Each is a `torch.save`d dict: `img_features` (n_pictures, dim), a row a picture in THINGS order, and `text_features`
(n_concepts, dim), a row a concept folder (atm.md 3). They name neither pictures nor model, so what can be checked is
checked: counts, sizes, lengths, and that pictures and the texts of their concepts belong together. The row-by-row check
against the model itself, where its weights are at hand, is the stage's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import numpy as np

from eegrecon.data.targets import UNIT_LENGTH
from eegrecon.errors import ConfigError, DataError

if TYPE_CHECKING:
    from eegrecon.data.images import ImageSet

KEYS = {"image": "img_features", "text": "text_features"}
PARTITIONS = ("train", "test")
UNIT = 1e-3  # how far from 1 a length may be and still count as L2-normalised
# A picture's embedding must be nearer to its own concept's text than to others', in this share of the comparisons. In
# another order it is half of them; CLIP itself names about nine in ten THINGS concepts right in pairs.
IN_ORDER, SAMPLE = 0.75, 2000
# EEG_Image_decode@49cb3a2 embeds with the second value of create_model_and_transforms: the training transform.
PUBLISHED_TRANSFORM = "as published: open_clip training transform (random crop of 0.9 to 1.0 of the area)"


class FeatureFiles:
    """A pair of feature files, memory-mapped, as the source of a target store.

    Args:
        folder: Where `<stem>_train.pt` and `<stem>_test.pt` lie.
        stem: What their names begin with.
        model: The model they are said to be of, open_clip's name.
        weights_tag: Its weights.
        transform: What the pictures went through, for the store's header.
        normalised: Whether the vectors must have length one; null takes what is there. (The published files of both
            kinds bear one name: EEG_Image_decode's Retrieval/ normalises, its Generation/ does not.)
        spot_check: How many rows of each file the stage embeds again to compare, where it can; 0: none.
    """

    kinds = ("image", "text")

    def __init__(
        self,
        folder: str,
        stem: str = "ViT-H-14_features",
        model: str = "ViT-H-14",
        weights_tag: str = "laion2b_s32b_b79k",
        transform: str = PUBLISHED_TRANSFORM,
        normalised: bool | None = None,
        spot_check: int = 16,
    ) -> None:
        if spot_check < 0:
            raise ConfigError(f"feature_file's spot_check is {spot_check}, but it counts rows: 0 (none) or more.")
        self.files = {name: Path(folder) / f"{stem}_{name}.pt" for name in PARTITIONS}
        self.model, self.weights_tag, self.transform = model, weights_tag, transform
        self.normalised, self.spot_check = normalised, spot_check
        self._blocks: dict[tuple[str, str], np.ndarray | None] = {}

    def header(self, kind: str) -> dict[str, Any]:
        """Say what the vectors are, for a target store; call after `check`."""
        length = UNIT_LENGTH if self.normalised else "lengths as the model gave them"
        return {
            "model": self.model,
            "weights_tag": self.weights_tag,
            "weights_sha256": "",
            "layer": f"final, {length}",
            "transform": self.transform if kind == "image" else None,
            "scaling_factor": None,
        }

    def block(self, partition: str, kind: str) -> np.ndarray | None:
        """All vectors of one kind, (n, dim), mapped; None if the file has no such block.

        Raises:
            DataError: The file is missing, unreadable or holds anything but tensors, or the block is no matrix.
        """
        if (partition, kind) not in self._blocks:
            for each, key in KEYS.items():
                self._blocks[partition, each] = _matrix(read_tensors(self.files[partition]), key, self.files[partition])
        return self._blocks[partition, kind]

    def check(self, images: ImageSet, kind: str) -> tuple[int, ...]:
        """Check everything that needs no network; returns the shape of one vector.

        Raises:
            DataError: Rows and pictures do not fit, vectors are not finite, zero, of two sizes or of other lengths
                than asked for, or pictures do not belong to the texts of their concepts.
        """
        dims, lengths = {}, {}
        for partition in PARTITIONS:
            path, index = self.files[partition], _index(images, partition)
            concepts = len(np.unique(images.concept_index[index]))
            expected = {"image": len(index), "text": concepts}
            if self.block(partition, kind) is None:
                raise DataError(f"{path} has no {KEYS[kind]}, which a target of kind {kind} is made of: name another.")
            for each in self.kinds:
                values = self.block(partition, each)
                if values is None:
                    continue
                if len(values) != expected[each]:
                    what = "pictures" if each == "image" else "concepts"
                    raise DataError(
                        f"{path} has {len(values)} rows of {KEYS[each]}, but {images.set_root} has {expected[each]} "
                        f"{partition} {what}: take the file that was made from these pictures."
                    )
                dims[f"{partition} {KEYS[each]}"] = values.shape[1]
                size = _lengths(values, path, KEYS[each])
                if each == kind:
                    lengths[partition] = bool(np.all(np.abs(size - 1) < UNIT))
            self._check_order(images, partition)
        if len(set(dims.values())) > 1:
            raise DataError(
                f"The feature files in {self.files['train'].parent} hold vectors of several sizes ("
                + ", ".join(f"{name}: {size}" for name, size in dims.items())
                + "): they are not of one model, so take a pair that is."
            )
        if len(set(lengths.values())) > 1 or self.normalised not in (None, lengths["train"]):
            found = " and ".join(f"{name}: {'yes' if unit else 'no'}" for name, unit in lengths.items())
            raise DataError(
                f"The {KEYS[kind]} of {self.files['train']} and {self.files['test'].name} should be L2-normalised: "
                f"{'yes' if self.normalised else 'no' if self.normalised is False else 'both or neither'}, but found "
                f"{found} (files of both kinds bear this name): take the other ones, or change args.normalised."
            )
        self.normalised = lengths["train"]
        return (next(iter(dims.values())),)

    def rows(self, images: ImageSet, kind: str, partition: str, start: int, stop: int) -> np.ndarray:
        """Vectors of pictures start…stop of a partition, (k, dim) float32; texts are repeated a row a picture."""
        values = self.block(partition, kind)
        assert values is not None  # `check` has refused already
        rows = np.arange(start, stop)
        if kind == "text":
            rows = concept_rows(images, partition)[start:stop]
        return np.asarray(values[rows], dtype=np.float32)

    def _check_order(self, images: ImageSet, partition: str) -> None:
        pictures, texts = self.block(partition, "image"), self.block(partition, "text")
        if pictures is None or texts is None or pictures.shape[1] != texts.shape[1] or len(texts) < 2:
            return
        rows = np.unique(np.linspace(0, len(pictures) - 1, SAMPLE).round().astype(int))
        own = concept_rows(images, partition)[rows]
        similarity = _unit(pictures[rows]) @ _unit(texts).T
        beaten = (similarity < similarity[np.arange(len(rows)), own][:, None]).sum(1) / (len(texts) - 1)
        if beaten.mean() < IN_ORDER:
            raise DataError(
                f"The pictures in {self.files[partition]} do not belong to the texts of their concepts (a picture is "
                f"nearer to its own than to another in {beaten.mean():.0%} of the cases, expected over {IN_ORDER:.0%}; "
                "in another order it would be 50%): its rows are not in THINGS order (folders sorted, then files), or "
                "its two blocks are of different models, so take another file."
            )


def concept_rows(images: ImageSet, partition: str) -> np.ndarray:
    """Which of a partition's concepts, in folder order, each picture shows, (n,) int64."""
    return np.unique(images.concept_index[_index(images, partition)], return_inverse=True)[1].astype(np.int64)


def read_tensors(path: Path) -> Any:
    """What a `.pt` file holds, loaded by torch's restricted unpickler and memory-mapped where the format allows it.

    Raises:
        DataError: It is missing, no such file, truncated, or names anything but tensors and plain containers.
    """
    import torch

    if not path.is_file():
        raise DataError(
            f"The feature file {path} does not exist: set args.folder and args.stem of feature_file, or make the "
            "features with the model open_clip."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # torch raises many kinds for what is one thing here: no readable file of tensors
        text = " ".join(str(error).split())
        _, found, named = text.partition("Unsupported global: GLOBAL ")
        why = f"it names {named.split()[0]}, which nobody runs here" if found else text[:160]
        raise DataError(f"{path} cannot be read as a file of tensors ({why}): download it again.") from error


def _matrix(content: Any, key: str, path: Path) -> np.ndarray | None:
    import torch

    if isinstance(content, torch.Tensor):  # Generation/variables/ViT-H-14_features_test.pt is a bare tensor of pictures
        content = {KEYS["image"]: content}
    if not isinstance(content, dict) or not set(KEYS.values()) & set(content):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"{path} must hold a dict with {' and '.join(KEYS.values())}, but it holds {found or 'nothing'}."
        )
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, torch.Tensor) or value.ndim != 2 or not value.is_floating_point():
        shape = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value)
        raise DataError(f"{path}: {key} must be a matrix of numbers, a row a vector, but it is {shape}.")
    # numpy has no bfloat16, which some published files use
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()


def _lengths(values: np.ndarray, path: Path, key: str) -> np.ndarray:
    size = np.linalg.norm(np.asarray(values, dtype=np.float32), axis=1)
    if not np.isfinite(size).all() or not size.all():
        row = int(np.argmax(~np.isfinite(size) | (size == 0)))
        state = "holds NaN or infinite values" if not np.isfinite(size[row]) else "is zero"
        raise DataError(f"Row {row} of {key} in {path} {state}: take another file.")
    return np.asarray(size)


def _unit(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def _index(images: ImageSet, partition: str) -> np.ndarray:
    return images.train_index if partition == "train" else images.test_index
