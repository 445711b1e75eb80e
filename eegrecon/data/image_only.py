"""Pictures that nobody was shown: embeddings for the unconditional half of a diffusion prior."""

import numpy as np

from eegrecon.data.images import ImageSet
from eegrecon.data.splits import Split
from eegrecon.data.targets import TargetStore
from eegrecon.errors import DataError


def image_only_rows(store: TargetStore, pictures: ImageSet, shown: ImageSet, split: Split) -> np.ndarray:
    """Embeddings of the training pictures of a store, (n, dim) float32, without what is held out elsewhere.

    A picture is left out if its file or the name of its concept is that of a validation or test picture. Names are
    compared as they stand: sets that name their concepts otherwise (ImageNet) are only protected by their files.

    Args:
        store: The store.
        pictures: The set it belongs to, this one or another.
        shown: The set that the split divides.
        split: Its parts.

    Raises:
        DataError: Fewer than two pictures are left.
    """
    held_out = [shown.records[i] for i in np.concatenate([split.val, split.test])]
    concepts, files = {record.concept for record in held_out}, {record.sha256 for record in held_out}
    _, index = store.open("train")
    records = [pictures.records[i] for i in index]
    keep = [record.concept not in concepts and record.sha256 not in files for record in records]
    if sum(keep) < 2:
        raise DataError(
            f"Of the {len(keep)} training pictures in {store.path}, {sum(keep)} are neither validation nor test "
            f"pictures or concepts of {shown.set_root}: name another store in diffusion.image_only, or leave it out."
        )
    return store.rows(index[np.array(keep)])
