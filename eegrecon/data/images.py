"""The pictures of a set: `images.json` lists them in THINGS order and gives every picture its `image_index`."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eegrecon.artifacts import sha256_file, write_json
from eegrecon.data.layout import IMAGES_FOLDER, IMAGES_JSON
from eegrecon.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

FOLDERS = {"train": "training_images", "test": "test_images"}
SUFFIXES = (".jpg", ".jpeg", ".png")
FIX = "`eegrecon prepare-data`"


@dataclass(frozen=True)
class ImageRecord:
    """One picture; `image_id` is partition/folder/file without suffix, `path` is relative to the set's folder.

    `concept_index` counts the folders of both partitions together, training first, so it is unique in the set.
    """

    image_id: str
    concept: str
    concept_index: int
    path: str
    sha256: str

    @property
    def partition(self) -> str:
        """`train` or `test`."""
        return self.image_id.split("/", 1)[0]

    @property
    def folder(self) -> str:
        """The concept's folder with its number, such as `00001_aardvark`."""
        return self.image_id.split("/")[1]


class ImageSet:
    """The pictures of one set in THINGS order.

    Args:
        set_root: The set's folder, `<root>/<set>`.
        records: Its pictures; `image_index` is the position in this list.
        sha256: Of `images.json`, which ties stores to this very list.
    """

    def __init__(self, set_root: Path, records: list[ImageRecord], sha256: str) -> None:
        self.set_root, self.records, self.sha256 = Path(set_root), records, sha256

    @classmethod
    def from_root(cls, set_root: Path) -> "ImageSet":
        """Read `<set_root>/images.json`.

        Raises:
            DataError: It is missing or is not a list of pictures in THINGS order.
        """
        path = Path(set_root) / IMAGES_JSON
        if not path.is_file():
            raise DataError(f"The data folder {set_root} has no {IMAGES_JSON}: make it with {FIX}, or check data.root.")
        names = {item.name for item in fields(ImageRecord)}
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == names for row in rows):
                raise ValueError(f"expected a list of objects with {', '.join(sorted(names))}")
            records = [ImageRecord(**row) for row in rows]
            for record in records:
                if record.partition not in FOLDERS or record.image_id.count("/") != 2:
                    raise ValueError(f"the image_id {record.image_id!r} is not partition/folder/file")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a list of pictures ({error}): make it again with {FIX}.") from error
        partitions = [record.partition for record in records]
        if not records or partitions != sorted(partitions, reverse=True):  # "train" sorts after "test"
            raise DataError(f"{path} must list training pictures first, then test pictures: make it again with {FIX}.")
        return cls(Path(set_root), records, sha256_file(path))

    def __len__(self) -> int:
        """Number of pictures, both partitions."""
        return len(self.records)

    @cached_property
    def train_index(self) -> np.ndarray:
        """`image_index` of the training pictures, (n_train,) int64, ascending."""
        return self._index_of("train")

    @cached_property
    def test_index(self) -> np.ndarray:
        """`image_index` of the test pictures, (n_test,) int64, ascending."""
        return self._index_of("test")

    @cached_property
    def concept_index(self) -> np.ndarray:
        """`concept_index` of every picture, (n,) int64."""
        return np.array([record.concept_index for record in self.records], dtype=np.int64)

    def _index_of(self, partition: str) -> np.ndarray:
        rows = [i for i, record in enumerate(self.records) if record.partition == partition]
        return np.array(rows, dtype=np.int64)

    def concept_of(self, index: int) -> str:
        """The concept's name of a picture, underscores kept."""
        return self.records[index].concept

    def load(self, index: int) -> "Image.Image":
        """The picture at this `image_index` as RGB.

        Raises:
            DataError: The file is missing or no picture.
        """
        from PIL import Image

        path = self.set_root / self.records[index].path
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except OSError as error:
            raise DataError(
                f"The picture {path} ({self.records[index].image_id}) cannot be read ({error}): make the pictures "
                f"again with {FIX}."
            ) from error

    def ids(self, index: np.ndarray) -> list[str]:
        """`image_id` of each `image_index`."""
        return [self.records[int(i)].image_id for i in index]


def build_images_json(set_root: Path) -> ImageSet:
    """List the pictures under `<set_root>/images_set` in THINGS order and write `<set_root>/images.json`.

    THINGS order (EEG_Image_decode and eeg_encoding): training before test pictures, folders sorted, files sorted; a
    concept's name is what follows the first underscore of its folder. An equal file is left untouched.

    Returns:
        The set, as `ImageSet.from_root` would read it.

    Raises:
        DataError: A folder is missing or empty, or is not named `00001_concept`, or a picture cannot be read.
    """
    set_root = Path(set_root)
    records: list[ImageRecord] = []
    concept_index = -1
    for partition, name in FOLDERS.items():
        home = set_root / IMAGES_FOLDER / name
        if not home.is_dir():
            raise DataError(f"The picture folder {home} does not exist: make it with {FIX}, or check data.root.")
        for folder in sorted(item for item in home.iterdir() if item.is_dir()):
            number, _, concept = folder.name.partition("_")
            if not concept or not number.isdigit():
                raise DataError(f"The picture folder {folder} is not named like 00001_aardvark: rename or remove it.")
            files = sorted(item for item in folder.iterdir() if item.suffix.lower() in SUFFIXES)
            if not files:
                raise DataError(f"The picture folder {folder} holds no picture ({', '.join(SUFFIXES)}): remove it.")
            concept_index += 1
            for file in files:
                try:
                    content = file.read_bytes()
                except OSError as error:
                    raise DataError(
                        f"The picture {file} cannot be read ({error.strerror or error}): copy it again, or mend the "
                        "link that it is."
                    ) from error
                records.append(
                    ImageRecord(
                        image_id=f"{partition}/{folder.name}/{file.stem}",
                        concept=concept,
                        concept_index=concept_index,
                        path=file.relative_to(set_root).as_posix(),
                        sha256=hashlib.sha256(content).hexdigest(),
                    )
                )
    rows = [asdict(record) for record in records]
    path = set_root / IMAGES_JSON
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != rows:
        write_json(path, rows)
    return ImageSet.from_root(set_root)
