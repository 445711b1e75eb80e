from pathlib import Path

import numpy as np
import pytest

from eegrecon.data.budget import trials_in, within_budget
from eegrecon.data.partition import Partition
from eegrecon.errors import ConfigError

GALLERY, TRAIN = np.array([20, 25]), np.arange(10)


def partition(keep=None):
    """Ten training pictures and two of two held-out concepts each, four repetitions in two sessions."""
    index = np.concatenate([TRAIN, [20, 21, 25, 26]])
    session = np.tile([1, 2, 1, 2], (14, 1))
    eeg = np.zeros((14, 4, 1, 2), dtype=np.float16)
    return Partition(eeg, index, session, [0], slice(0, 2), Path("x_eeg.npy"), ["Oz"], keep=keep)


def test_keeps_so_many_of_the_first_session_and_one_a_gallery_picture():
    kept = within_budget(partition(), 12, train=TRAIN, gallery=GALLERY)
    assert kept.keep.sum() == 12
    assert (kept.session[kept.keep] == 1).all()
    per_picture = dict(zip(kept.image_index.tolist(), kept.keep.sum(1).tolist(), strict=True))
    assert per_picture[20] == per_picture[25] == 1
    assert per_picture[21] == per_picture[26] == 0
    assert sum(per_picture[i] for i in range(10)) == 10


def test_a_second_session_is_touched_when_the_first_is_used_up():
    kept = within_budget(partition(), 24, train=TRAIN, gallery=GALLERY)
    sessions = kept.session[kept.keep]
    assert (sessions == 1).sum() == 22  # 20 of training pictures, 2 of the gallery
    assert (sessions == 2).sum() == 2


def test_the_seed_decides_and_nothing_else():
    keeps = [within_budget(partition(), 10, train=TRAIN, gallery=GALLERY, seed=seed).keep for seed in (0, 0, 1)]
    assert np.array_equal(keeps[0], keeps[1])
    assert not np.array_equal(keeps[0], keeps[2])


def test_trials_that_are_left_out_stay_out():
    keep = np.zeros((14, 4), dtype=bool)
    keep[:, 1] = True
    kept = within_budget(partition(keep), 8, train=TRAIN, gallery=GALLERY)
    assert not kept.keep[:, [0, 2, 3]].any()


@pytest.mark.parametrize(("trials", "words"), [(3, "validation takes 2 of them"), (43, "has 56 that may be used")])
def test_budgets_that_cannot_be_kept(trials, words):
    with pytest.raises(ConfigError, match=words):
        within_budget(partition(), trials, train=TRAIN, gallery=GALLERY)


def test_minutes():
    assert trials_in(5, 0.2) == 1500
    assert trials_in(0.1, 0.3) == 20
