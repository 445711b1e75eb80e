from pathlib import Path

import numpy as np
import pytest
import torch

from eegrecon.data import memory, rows
from eegrecon.data.eeg_rows import GroupMeans, HeldTrials, SingleTrials, StreamedAverages
from eegrecon.data.partition import Partition
from eegrecon.data.rows import rows_of, training_blocks
from eegrecon.errors import DataError

CPU = torch.device("cpu")


def partition(seed, n=6, repetitions=4, keep=None):
    rng = np.random.default_rng(seed)
    eeg = rng.normal(size=(n, repetitions, 3, 7)).astype(np.float16)
    session = np.ones((n, repetitions))
    return Partition(eeg, np.arange(10, 10 + n), session, [2, 0], slice(1, 6), Path("x"), ["c", "a"], keep=keep)


@pytest.fixture
def two():
    keep = np.ones((6, 4), dtype=bool)
    keep[1, 2] = keep[3, 0] = keep[3, 1] = False
    keep[4] = False
    return [partition(0, keep=keep), partition(1, repetitions=3)]


def trials_of(two, picture, subject):
    """The oracle: plain indexing."""
    part = two[subject - 1]
    row = picture - 10
    return torch.from_numpy(part.eeg[row][part.used[row]][:, [2, 0], 1:6].astype(np.float32))


PICTURES = np.array([11, 13, 14, 15])


def test_single_trials_by_row(two):
    eeg, columns = rows_of(two, [1, 2], PICTURES, "none")
    assert columns["subject"].tolist() == [1] * 9 + [2] * 12  # picture 14 of subject 1 has no trial that is kept
    assert columns["repetition"][:9].tolist() == [0, 1, 3, 2, 3, 0, 1, 2, 3]
    found = eeg.read(torch.arange(len(eeg)))
    want = [trials_of(two, p, s) for s in (1, 2) for p in PICTURES]
    assert torch.equal(found, torch.cat(want))
    assert isinstance(eeg, SingleTrials)
    assert eeg.dtype is torch.float16


def test_averages_are_the_same_in_memory_and_streamed(two, monkeypatch):
    held, columns = rows_of(two, [1, 2], PICTURES, "all")
    want = [trials_of(two, p, s).mean(0) for s, p in zip(columns["subject"], columns["image_index"], strict=True)]
    assert columns["image_index"].tolist() == [11, 13, 15, 11, 13, 14, 15]
    assert torch.allclose(held.read(torch.arange(7)), torch.stack(want), atol=1e-6)
    monkeypatch.setattr(rows, "free_bytes", lambda device: 10)
    streamed, _ = rows_of(two, [1, 2], PICTURES, "all")
    assert isinstance(held, HeldTrials)
    assert isinstance(streamed, StreamedAverages)
    order = torch.tensor([5, 0, 6, 0, 2])
    assert torch.equal(streamed.read(order), held.read(order))
    assert torch.equal(streamed.on(CPU).read(order), held.read(order))


def test_rows_on_a_device_are_the_same_bits(two):
    for average in ("none", "all", 2):
        eeg, _ = rows_of(two, [1, 2], PICTURES, average, seed=3)
        held = eeg.on(CPU)
        n = len(eeg)
        order = torch.randperm(n)
        assert torch.equal(held.read(order), eeg.read(order))
        if average == 2:
            assert torch.equal(held.read(order + 4 * n), eeg.read(order + 4 * n))
            held = held.trials
        assert held.eeg.dtype is (torch.float32 if average == "all" else torch.float16)
        assert held.eeg.nbytes == eeg.extra_bytes(torch.device("meta"))
        assert held.extra_bytes(CPU) == 0


def test_groups_are_of_one_picture_and_complete(two):
    eeg, columns = rows_of(two, [1, 2], PICTURES[[0, 1, 3]], 2, seed=0)
    # trials of subject 1: 3, 2, 4; of subject 2: 3, 3, 3
    assert columns["image_index"].tolist() == [11, 13, 15, 15, 11, 13, 15]
    assert columns["subject"].tolist() == [1] * 4 + [2] * 3
    assert set(columns["repetition"].tolist()) == {-1}
    single, of = rows_of(two, [1, 2], PICTURES[[0, 1, 3]], "none")
    tables = [eeg.table(epoch) for epoch in range(60)]
    for table in tables:
        assert len(set(table.flatten().tolist())) == 14  # no trial twice in an epoch
        for name in ("image_index", "subject"):
            assert (of[name][table.numpy()] == columns[name][:, None]).all()
    assert len({tuple(map(tuple, table.tolist())) for table in tables}) > 20
    assert {i for table in tables for i in table.flatten().tolist()} == set(range(len(single)))  # all come to be used
    pairs = [frozenset(table[2].tolist()) for table in tables]  # picture 15 of subject 1: four trials, six pairs
    assert len(set(pairs)) == 6
    for epoch in (0, 7):
        want = torch.stack([single.read(row).double().mean(0) for row in eeg.table(epoch)])
        found = eeg.read(torch.arange(7) + epoch * 7)
        assert torch.allclose(found.double(), want, atol=1e-6)


def test_groups_depend_on_seed_and_epoch_alone(two):
    make = lambda seed: rows_of(two, [1, 2], PICTURES[:2], 2, seed=seed)[0]  # noqa: E731
    one, same, other = make(1), make(1), make(2)
    assert torch.equal(one.table(5), same.table(5))
    assert any(not torch.equal(one.table(e), other.table(e)) for e in range(10))
    mixed = torch.tensor([0, len(one) * 3 + 1, 1])  # rows of several epochs in one batch
    apart = torch.cat([one.read(row) for row in mixed.split(1)])
    assert torch.equal(one.read(mixed), apart)
    assert isinstance(one, GroupMeans)
    assert one.read(torch.tensor([], dtype=torch.int64)).shape == (0, 2, 5)


def test_too_few_trials_for_a_group_is_one_sentence(two):
    with pytest.raises(DataError, match="averages over 3 trials, but a picture has only 2 that are used"):
        rows_of(two, [1, 2], PICTURES[[0, 1, 3]], 3)


def test_statistics_see_the_rows_as_trained_on_and_find_what_is_broken(two):
    eeg, _ = rows_of(two, [1, 2], PICTURES, "none")
    blocks = torch.cat(list(training_blocks(eeg, two, PICTURES)))
    assert torch.equal(blocks, eeg.read(torch.arange(len(eeg))))
    groups, _ = rows_of(two, [1, 2], PICTURES[[0, 1, 3]], 2)
    blocks = torch.cat(list(training_blocks(groups, two, PICTURES[[0, 1, 3]])))
    assert torch.equal(blocks, groups.read(torch.arange(len(groups))))
    two[0].eeg[1, 2] = np.nan  # not kept
    two[1].eeg[5, 0, 2, 3] = np.inf
    for source in (eeg, groups):
        with pytest.raises(DataError, match="infinite value at picture 'number 15', repetition 0, channel 'c'"):
            list(training_blocks(source, two, PICTURES))


def test_free_memory_is_the_least_of_what_limits_it(tmp_path, monkeypatch):
    meminfo, limit, used = tmp_path / "meminfo", tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUPS", ((limit, used),))
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:   4000 kB\n")
    assert memory.free_bytes(CPU) == 4000 * 1024
    limit.write_text("max\n")
    used.write_text("5\n")
    assert memory.free_bytes(CPU) == 4000 * 1024
    limit.write_text("1000005\n")
    assert memory.free_bytes(CPU) == 1000000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\nactive_file 7\n")
    assert memory.free_bytes(CPU) == 1000300
    (tmp_path / "memory.stat").write_text("inactive_file 300\ntotal_inactive_file 400\n")  # version 1
    assert memory.free_bytes(CPU) == 1000400
    (tmp_path / "memory.stat").unlink()
    meminfo.unlink()
    assert memory.free_bytes(CPU) == 1000000
    used.write_text("2000000")
    assert memory.free_bytes(CPU) == 0
