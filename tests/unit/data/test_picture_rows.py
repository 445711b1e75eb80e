"""Rows of the generator: every draw its own, with what the pathways say about its trial."""

import pytest
import torch

from eegrecon.data.picture_rows import PictureInputs, picture_rows, vocabulary
from eegrecon.errors import DataError

INDEX = torch.tensor([36, 37])


def inputs(**more):
    return PictureInputs(torch.arange(2 * 3 * 4.0).reshape(2, 3, 4), **more)


def test_every_draw_gets_what_belongs_to_its_trial():
    latents = torch.randn(2, 4, 2, 2)
    both = inputs(latents=latents, captions=[["a cat", "a dog", "a cat"], ["an axe", "a dog", "a cat"]])
    words = vocabulary([both, inputs()])
    assert words == ["a cat", "a dog", "an axe"]
    rows = picture_rows(both, INDEX, words).__getitems__(range(6))
    assert rows["image_index"].tolist() == [36, 36, 36, 37, 37, 37]
    assert rows["draw"].tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(rows["image_embeds"], both.image_embeds.flatten(0, 1))
    assert torch.equal(rows["latents"], latents[[0, 0, 0, 1, 1, 1]])
    assert [words[at] for at in rows["caption"]] == ["a cat", "a dog", "a cat", "an axe", "a dog", "a cat"]


def test_what_no_pathway_gives_is_not_there():
    assert set(picture_rows(inputs(), INDEX).columns) == {"image_embeds", "image_index", "draw"}


@pytest.mark.parametrize(
    ("more", "what"), [({"latents": torch.zeros(1, 4, 2, 2)}, "latents"), ({"captions": [["a"] * 3]}, "a caption")]
)
def test_lengths_must_agree(more, what):
    with pytest.raises(DataError, match=f"needs {what} of each of 2 pictures, got 1"):
        picture_rows(inputs(**more), INDEX, ["a"])
