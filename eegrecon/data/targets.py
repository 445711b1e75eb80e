"""The target store: what the network is asked to predict for every picture (embeddings, layers, VAE latents).

`targets/<name>/` holds `header.json`, `{train,test}.npy` (n_images, *dim) and `{train,test}_image_index.npy`. Values
are stored as the model gave them; L2 normalisation is the reader's option.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eegrecon.artifacts import write_json
from eegrecon.data.images import ImageSet
from eegrecon.data.npy import NpyStream, open_array, read_header, save_array
from eegrecon.errors import DataError

SCHEMA = 1
HEADER = "header.json"
CLAIM = ".partial.json"
TARGET_KINDS = ("image", "text", "layer", "vae_latent")
UNIT_LENGTH = "L2-normalised in the file"  # how the layer of imported vectors ends that had length one already
FIX = "`eegrecon extract-targets`"
_OPTIONAL = (str, type(None))
KINDS: dict[str, Any] = {
    "kind": str,
    "model": str,
    "weights_tag": _OPTIONAL,
    "weights_sha256": _OPTIONAL,
    "layer": _OPTIONAL,
    "transform": (str, dict, list, type(None)),
    "blur": (int, float, dict, type(None)),
    "prompt": _OPTIONAL,
    "dim": int,
    "scaling_factor": (int, float, type(None)),
    "images_sha256": str,
    "files": dict,
}


class TargetStore:
    """Targets of one kind for every picture of a set. Opening one partition never touches the other's files.

    Attributes:
        name: The folder's name.
        kind: image, text, layer or vae_latent.
        shape: Of one target, such as (256,) or (4, 16, 16).
        dim: Numbers in one target.
        scaling_factor: What VAE latents were multiplied by already; None for others.

    Args:
        path: The store's folder, such as `data/pocket/targets/clip-pocket`.
        images: The set's pictures; if given, the store must have been made from this very list.
        l2_normalise: Divide every vector by its norm on reading.

    Raises:
        DataError: The header is missing, unreadable, contradicts itself or belongs to other pictures.
    """

    def __init__(self, path: Path, images: ImageSet | None = None, *, l2_normalise: bool = False) -> None:
        self.path, self.l2_normalise = Path(path), l2_normalise
        header = read_header(self.path / HEADER, KINDS, schema=SCHEMA, fix=FIX)
        self.header, self.name = header, self.path.name
        self.kind: str = header["kind"]
        self.dim: int = header["dim"]  # numbers in one target: the product of `shape`
        self.shape: tuple[int, ...] = tuple(header["files"].get("train.npy", {}).get("shape", [0, 0])[1:])
        self.scaling_factor: float | None = header["scaling_factor"]
        where = self.path / HEADER
        if self.kind not in TARGET_KINDS:
            raise DataError(
                f"{where} gives the kind {self.kind!r}, expected one of {', '.join(TARGET_KINDS)}: run {FIX}."
            )
        for partition in ("train", "test"):
            shape = header["files"].get(f"{partition}.npy", {}).get("shape")
            if shape is None or tuple(shape[1:]) != self.shape or int(np.prod(shape[1:])) != self.dim:
                raise DataError(
                    f"{where} gives dim {self.dim}, but {partition}.npy the shape {shape}: run {FIX} again."
                )
        if l2_normalise and len(self.shape) != 1:
            raise DataError(
                f"The target {self.name!r} holds arrays of shape {self.shape}, and only vectors can be L2-normalised: "
                "set its l2_normalise to false."
            )
        if images is not None and header["images_sha256"] != images.sha256:
            raise DataError(
                f"The targets in {self.path} were made from another picture list ({header['images_sha256'][:12]}…) "
                f"than {images.set_root / 'images.json'} ({images.sha256[:12]}…): make them again with {FIX} "
                "--overwrite."
            )
        self._cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def interface(self) -> dict[str, Any]:
        """What a network trained on this target and its consumer must agree on.

        Returns:
            {name, model, weights_tag, layer, dim, normalised}, and `kind` for texts, which nothing else tells from
            pictures (manifests from before it was said stay as they are).
        """
        header = self.header
        return {
            "name": self.name,
            "model": header["model"],
            "weights_tag": header["weights_tag"],
            "layer": header["layer"],
            "dim": self.dim,
            "normalised": self.l2_normalise or str(header["layer"]).endswith(UNIT_LENGTH),
            **({"kind": self.kind} if self.kind == "text" else {}),
        }

    def latent_interface(self) -> dict[str, Any]:
        """What a network that predicts VAE latents and a generator that starts from them must agree on.

        Returns:
            {name, model, weights_tag, weights_sha256, layer, transform, scaling_factor, shape}.
        """
        keys = ("model", "weights_tag", "weights_sha256", "layer", "transform", "scaling_factor")
        return {"name": self.name, **{key: self.header[key] for key in keys}, "shape": list(self.shape)}

    def open(self, partition: Literal["train", "test"], *, verify: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Map one partition: values (n_images, *dim) as stored (never normalised) and image_index (n_images,) int64.

        Raises:
            DataError: A file is missing, truncated, not what the header says, or lists a picture twice.
        """
        if partition not in self._cache or verify:
            files = self.header["files"]
            names = (f"{partition}.npy", f"{partition}_image_index.npy")
            values, index = (open_array(self.path / n, files.get(n), fix=FIX, verify=verify) for n in names)
            index = np.array(index, dtype=np.int64)
            if index.shape != values.shape[:1] or len(np.unique(index)) != len(index):
                raise DataError(
                    f"{self.path / names[1]} must list one picture for each of the {len(values)} rows of {names[0]}, "
                    f"each once: make the store again with {FIX}."
                )
            self._cache[partition] = (values, index)
        return self._cache[partition]

    def rows(self, image_index: np.ndarray) -> np.ndarray:
        """Targets of these pictures, (n, *dim) float32, in the order asked for (repeats allowed), normalised if asked.

        The test files are opened only if a picture is not among the training ones.

        Raises:
            DataError: A picture has no target here, or a value is NaN or infinite.
        """
        wanted = np.asarray(image_index, dtype=np.int64)
        out = np.empty((len(wanted), *self.shape), dtype=np.float32)
        missing = np.ones(len(wanted), dtype=bool)
        partitions: tuple[Literal["train", "test"], ...] = ("train", "test")
        for partition in partitions:
            if not missing.any():
                break
            values, index = self.open(partition)
            row_of = {int(i): row for row, i in enumerate(index)}
            rows = np.array([row_of.get(int(i), -1) for i in wanted], dtype=np.int64)
            here = missing & (rows >= 0)
            out[here] = values[rows[here]]
            missing &= ~here
        if missing.any():
            absent = np.unique(wanted[missing])
            raise DataError(
                f"The targets in {self.path} lack {len(absent)} of the pictures asked for (the first is number "
                f"{absent[0]} of images.json): make them again with {FIX} --overwrite."
            )
        if not np.isfinite(out).all():
            bad = int(wanted[np.argwhere(~np.isfinite(out))[0][0]])
            raise DataError(
                f"The targets in {self.path} hold NaN or infinite values for picture number {bad} of images.json: make "
                f"them again with {FIX} --overwrite."
            )
        if self.l2_normalise:
            out = out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return out


class TargetStoreWriter:
    """Streams targets into a store, picks up after a kill, and writes `header.json` last.

    Rows come in `images.train_index` / `images.test_index` order. A partial file is kept and continued only if it was
    begun with exactly the same header.

    Args:
        path: The store's folder.
        images: The set's pictures.
        header: kind, model, weights_tag, weights_sha256, layer, transform, blur, prompt, scaling_factor; absent ones
            are stored as null.
        dim: Shape of one target, such as (256,) or (4, 16, 16); the header keeps the product.
        dtype: Stored type.
    """

    def __init__(
        self, path: Path, images: ImageSet, header: Mapping[str, Any], dim: tuple[int, ...], dtype: str = "float32"
    ) -> None:
        self.path, self.images = Path(path), images
        names = [name for name in KINDS if name not in ("dim", "images_sha256", "files")]
        foreign = sorted(set(header) - set(names))
        if foreign:
            raise DataError(f"The header for {self.path} has fields no store knows: {', '.join(foreign)}.")
        self._header: dict[str, Any] = {
            "schema": SCHEMA,
            **{name: header.get(name) for name in names},
            "dim": int(np.prod(dim)),
            "images_sha256": images.sha256,
        }
        (self.path / HEADER).unlink(missing_ok=True)
        claim = self.path / CLAIM
        same = claim.is_file() and _read_json_or_none(claim) == self._header
        if not same:
            write_json(claim, self._header)
        self._index = {"train": images.train_index, "test": images.test_index}
        self._streams = {
            name: NpyStream(self.path / f"{name}.npy", (len(index), *dim), dtype, resume=same)
            for name, index in self._index.items()
        }

    def done(self, partition: str) -> int:
        """How many rows of a partition are written already."""
        return self._streams[partition].rows

    def append(self, partition: str, block: np.ndarray) -> None:
        """Add the next rows, (k, *dim).

        Raises:
            DataError: The block does not fit or holds values that are not finite.
        """
        self._streams[partition].append(block)

    def close(self) -> None:
        """Finish every file, then write the header and drop the resume note.

        Raises:
            DataError: Rows are missing.
        """
        files: dict[str, Any] = {}
        for name, stream in self._streams.items():
            files[f"{name}.npy"] = stream.finish()
            index = self._index[name].astype(np.int32)
            files[f"{name}_image_index.npy"] = save_array(self.path / f"{name}_image_index.npy", index)
        write_json(self.path / HEADER, {**self._header, "files": files})
        (self.path / CLAIM).unlink(missing_ok=True)

    def suspend(self) -> None:
        """Close the files and leave what was written for the next attempt."""
        for stream in self._streams.values():
            stream.close()


def _read_json_or_none(path: Path) -> Any:
    import json

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
