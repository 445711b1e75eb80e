"""Naming as retrieval: the two known points, an oracle by hand, and MiniLM's idea of likeness."""

import pytest
import torch

from eegrecon.analysis.captions import NAMED, caption_ranks
from eegrecon.analysis.scoring import rank_metrics

CONCEPTS = ["dog", "fire_engine", "apple", "violin", "sail boat", "chair", "tulip", "candle"]
PLACES = {"image_index": torch.arange(8), "subject": torch.ones(8)}


def scores(captions, **options):
    return rank_metrics({"_caption": caption_ranks(captions, CONCEPTS, **PLACES, **options)})


def test_naming_right_is_one_and_naming_one_thing_is_chance():
    perfect = scores([NAMED.format(name.replace("_", " ")) for name in CONCEPTS])
    assert perfect["test/caption_top1_8way"]["value"] == 1
    assert perfect["test/caption_top1_8way"]["chance"] == 1 / 8
    same = scores(["a picture of dog"] * 8)
    assert same["test/caption_top1_8way"]["value"] == pytest.approx(1 / 8)
    assert same["test/caption_top5_8way"]["value"] == pytest.approx(5 / 8)
    low, high = perfect["test/caption_top1_8way"]["ci95"]
    assert 0.6 < low < high == 1


def test_other_words_for_the_same_thing_count():
    near = scores(["a photo of a puppy", "a red truck of the fire brigade", "some fruit, maybe a pear", "a fiddle",
                   "a yacht at sea", "a stool", "a flower", "a burning wick"])  # fmt: skip
    assert near["test/caption_top1_8way"]["value"] >= 0.75


def test_ranks_are_cosines_counted_by_hand():
    table = {NAMED.format("apple"): [1.0, 0.0], NAMED.format("dog"): [0.0, 1.0], NAMED.format("tree"): [1.0, 1.0],
             "x": [3.0, 1.0], "y": [0.0, 0.5]}  # fmt: skip
    found = caption_ranks(
        ["x", "y", "x"], ["apple", "apple", "tree"], image_index=torch.arange(3), subject=torch.ones(3),
        embed=lambda texts: torch.tensor([table[text] for text in texts]),
    )  # fmt: skip
    # gallery: apple, tree. x: .949 to apple, .894 to tree; y: 0 and .707
    assert found.gallery == 2
    assert found.better.tolist() == [0, 1, 1]
    assert found.ties.tolist() == [0, 0, 0]


def test_one_entry_a_query():
    with pytest.raises(ValueError, match="got 2, 8, 8 and 8"):
        caption_ranks(["a", "b"], CONCEPTS, **PLACES)
