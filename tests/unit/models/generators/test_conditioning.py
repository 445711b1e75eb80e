"""Embeddings that do not belong to a generator, though their width does."""

from types import SimpleNamespace

import numpy as np
import pytest

from eegrecon.data.fused_targets import FusedTargets
from eegrecon.data.images import ImageSet
from eegrecon.data.targets import TargetStore, TargetStoreWriter
from eegrecon.models.generators.conditioning import mismatches
from tests.builders import build_tiny_set

SPACE = {"model": "ViT-H-14", "weights_tag": "laion2b_s32b_b79k"}


@pytest.fixture
def store_of(tmp_path):
    """Makes a target store of a kind and layer, 8 numbers wide."""
    images = ImageSet.from_root(build_tiny_set(tmp_path / "set"))

    def make(name="clip", kind="image", layer="final"):
        writer = TargetStoreWriter(tmp_path / name, images, {**SPACE, "kind": kind, "layer": layer}, (8,))
        for part, index in (("train", images.train_index), ("test", images.test_index)):
            writer.append(part, np.ones((len(index), 8), np.float32))
        writer.close()
        return TargetStore(tmp_path / name)

    return make


def generator(**says):
    """Of SPACE's image embeddings, 8 wide, unless it says otherwise."""
    return SimpleNamespace(dim=8, conditioning={**SPACE, "dim": 8, "normalised": False, **says})


SILENT = SimpleNamespace(dim=8, conditioning={})
BLOCK = "residual stream after 2 of 3 vision blocks (trunk.blocks)"


@pytest.mark.parametrize("layer", ["final", "image_embeds", "final, lengths as the model gave them", None])
def test_image_embeddings_fit(store_of, layer):
    assert mismatches(generator(), store_of(layer=layer).interface()) == []


def test_a_layer_of_the_same_width_does_not(store_of):
    store = store_of(kind="layer", layer=f"{BLOCK}, mean over the patches")
    assert mismatches(generator(), store.interface()) == [
        f"layer is 'final' in the generator and {BLOCK!r} in the target"
    ]
    assert mismatches(generator(layer=BLOCK), store.interface()) == []
    wrong = [f"layer is {BLOCK!r} in the generator and 'final' in the target"]
    assert mismatches(generator(layer=BLOCK), store_of("other").interface()) == wrong


def test_texts_of_the_same_clip_do_not(store_of):
    texts = store_of(kind="text").interface()
    assert texts["kind"] == "text"
    assert mismatches(generator(), texts) == ["kind is 'image' in the generator and 'text' in the target"]
    assert mismatches(generator(kind="text"), texts) == []
    assert "kind" not in store_of("pictures").interface()  # manifests that were written before stay true


def test_fused_targets_do_not(store_of):
    fused = FusedTargets(store_of(), [(store_of("vae"), True)]).interface()
    says = generator(dim=16)
    says.dim = 16
    assert mismatches(says, fused) == ["fusion is None in the generator and ['vae'] in the target"]
    says.conditioning["fusion"] = fused["fusion"]
    assert mismatches(says, fused) == []


def test_what_one_side_does_not_say_is_not_compared(store_of):
    assert mismatches(SILENT, store_of(kind="layer", layer=BLOCK).interface()) == []
    assert mismatches(generator(), {"dim": 8}) == []
    assert mismatches(SILENT, {"dim": 9}) == ["dim is 8 in the generator and 9 in the target"]
