from itertools import chain

import pytest
import torch

from eegrecon.data import batches
from eegrecon.data.batches import (
    GlobalBatchSampler,
    RowDataset,
    ShardBatchSampler,
    held_on,
    loader,
    whole,
)
from eegrecon.data.streams import generator_of
from eegrecon.errors import ConfigError


def test_ranks_share_the_batches_of_one_process():
    alone = list(GlobalBatchSampler(103, 12, seed=3, epoch=2))
    assert len(alone) == 8 == len(GlobalBatchSampler(103, 12))  # 103 = 8 · 12 + 7: the rest is dropped
    for world_size in (2, 3, 4):
        ranks = [list(GlobalBatchSampler(103, 12, rank, world_size, 3, 2)) for rank in range(world_size)]
        joined = [list(chain(*pieces)) for pieces in zip(*ranks, strict=True)]
        assert joined == alone
    rows = list(chain(*alone))
    assert len(set(rows)) == len(rows) == 96


def test_order_depends_on_seed_and_epoch_alone():
    sampler = GlobalBatchSampler(50, 10, seed=1)
    first = list(sampler)
    torch.manual_seed(9)
    assert list(sampler) == first
    sampler.sampler.set_epoch(1)  # as Lightning does
    second = list(sampler)
    assert second != first
    assert list(GlobalBatchSampler(50, 10, seed=1, epoch=1)) == second
    assert list(GlobalBatchSampler(50, 10, seed=0, epoch=1)) != second
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_impossible_batches_are_refused():
    with pytest.raises(ConfigError, match="multiple of 2"):
        GlobalBatchSampler(50, 11, 0, 2)
    with pytest.raises(ConfigError, match="only 5 training rows"):
        GlobalBatchSampler(5, 6)


def test_shards_are_equal_and_cover_everything():
    for n, batch, world_size in [(10, 4, 1), (10, 4, 2), (11, 4, 2), (7, 6, 4), (2, 8, 3)]:
        shards = [list(ShardBatchSampler(n, batch, rank, world_size)) for rank in range(world_size)]
        assert len({tuple(map(len, shard)) for shard in shards}) == 1
        assert len(shards[0]) == len(ShardBatchSampler(n, batch, 0, world_size))
        rows = [row for shard in shards for batch_rows in shard for row in batch_rows]
        assert set(rows) == set(range(n))
        assert len(rows) - n < world_size
    assert list(chain(*ShardBatchSampler(10, 4))) == list(range(10))


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_hands_whole_batches_through(workers):
    dataset = RowDataset({"x": torch.arange(20.0), "y": torch.arange(40).view(20, 2)})
    state = torch.get_rng_state()
    found = list(loader(dataset, GlobalBatchSampler(20, 8, seed=5), workers, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert [batch["x"].tolist() for batch in found] == [
        [float(i) for i in rows] for rows in GlobalBatchSampler(20, 8, seed=5)
    ]
    assert found[0]["y"].shape == (8, 2)
    assert whole(dataset)["x"].tolist() == list(range(20))


def test_rows_count_on_over_epochs_if_asked():
    plain, counted = (GlobalBatchSampler(20, 8, seed=5, epoch=3, count_on=c) for c in (False, True))
    assert [[i + 60 for i in batch] for batch in plain] == list(counted)


def test_rows_are_held_where_they_fit(monkeypatch):
    dataset, far = RowDataset({"x": torch.zeros(1000)}), torch.device("meta")
    assert held_on(dataset, torch.device("cpu"), "auto", "The rows", 1) == (dataset, "")  # they are there already
    assert held_on(dataset, far, False, "The rows", 1) == (dataset, "")
    free = {"meta": 8000}
    monkeypatch.setattr(batches, "free_bytes", lambda device: free[device.type])
    for wanted in ("auto", True):
        held, note = held_on(dataset, far, wanted, "The rows", 2)  # an accelerator is not shared by processes
        assert held.device == far
        assert "are kept there" in note
    free["meta"] = 7999
    held, note = held_on(dataset, far, "auto", "The rows", 1)
    assert held is dataset
    assert "The rows take 0.00 GB" in note
    assert "read batch by batch" in note
    with pytest.raises(ConfigError, match=r"of which data may take 50%: set loader\.on_device to auto or false"):
        held_on(dataset, far, True, "The rows", 1)


def test_processes_share_the_memory_of_the_machine(monkeypatch):
    class Elsewhere(RowDataset):
        def extra_bytes(self, device):
            return 4000

    dataset = Elsewhere({"x": torch.zeros(1000)})
    monkeypatch.setattr(batches, "free_bytes", lambda device: 15999)
    assert held_on(dataset, torch.device("cpu"), "auto", "The rows", 1)[0] is not dataset
    assert held_on(dataset, torch.device("cpu"), "auto", "The rows", 2)[0] is dataset


def test_streams_differ():
    draws = {torch.rand(1, generator=generator_of(*key)).item() for key in [(0,), (1,), (0, 1), (1, 0), (0, 0)]}
    assert len(draws) == 5
