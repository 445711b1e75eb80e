from pathlib import Path

import numpy as np
import pytest

from eegrecon.data.partition import Partition
from eegrecon.data.selection import averaging_of, kept_trials
from eegrecon.errors import ConfigError, DataError

HERE = Path("trials/sub-01/train_eeg.npy")
SESSION = np.array([[1, 1, 3, 3], [2, 2, 4, 4], [1, 2, 3, 4]])


def test_masks_by_hand():
    t, f = True, False
    assert kept_trials(SESSION, "all", "all", HERE) is None
    assert kept_trials(SESSION, [1, 2, 3, 4], 4, HERE) is None
    assert kept_trials(SESSION, [1], "all", HERE).tolist() == [[t, t, f, f], [f, f, f, f], [t, f, f, f]]
    assert kept_trials(SESSION, "all", 1, HERE).tolist() == [[t, f, f, f]] * 3
    assert kept_trials(SESSION, [3, 4], [3, 0], HERE).tolist() == [[f, f, f, t]] * 3


@pytest.mark.parametrize(
    ("sessions", "repetitions", "kind", "message"),
    [
        ([5], "all", DataError, "asks for session 5, but trials/sub-01/train_eeg.npy holds 1, 2, 3, 4"),
        ("all", 5, DataError, "asks for repetition 4, but .* has 4, numbered from 0"),
        ("all", [-1], DataError, "asks for repetition -1"),
        ("all", [1, 1], ConfigError, "names a repetition twice"),
        ([1], [3], DataError, "No trial in .* is of the sessions"),
    ],
)
def test_what_is_not_there_is_refused(sessions, repetitions, kind, message):
    with pytest.raises(kind, match=message):
        kept_trials(SESSION, sessions, repetitions, HERE)
    with pytest.raises(DataError, match="does not say in which session a trial was recorded"):
        kept_trials(np.zeros((2, 2)), [1], "all", HERE)


def test_averaging():
    assert [averaging_of(value) for value in ("each", "average", {"average": 3})] == ["none", "all", 3]
    for wrong in ("all", {"average": 1}, {"average": "2"}, {"mean": 2}, 2, None):
        with pytest.raises(ConfigError, match="expected one of each, average"):
            averaging_of(wrong)


def test_a_partition_reads_and_checks_only_what_is_kept():
    rng = np.random.default_rng(0)
    eeg = rng.normal(size=(3, 4, 2, 5)).astype(np.float16)
    keep = kept_trials(SESSION, [1, 3], [0, 1, 2], HERE)
    part = Partition(eeg, np.arange(3), SESSION, [0, 1], slice(0, 5), HERE, ["a", "b"], keep=keep)
    assert keep.sum(1).tolist() == [3, 0, 2]
    rows = np.array([2, 0])
    expected = [eeg[r][keep[r]].astype(np.float64).mean(0) for r in rows]
    assert np.allclose(part.average(rows), expected, atol=1e-6)
    blocks = list(part.blocks(rows))
    assert np.array_equal(blocks[0][1][blocks[0][2]], np.concatenate([eeg[r][keep[r]] for r in rows]))
    eeg[0, 3], eeg[2, 1], eeg[1] = np.nan, np.inf, np.nan  # none of them kept
    assert np.allclose(part.average(rows), expected, atol=1e-6)
    eeg[2, 2, 1, 3] = np.nan
    with pytest.raises(DataError, match="NaN at picture 'number 2', repetition 2, channel 'b'"):
        part.average(rows)
