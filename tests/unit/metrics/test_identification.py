import torch

from eegrecon.metrics.functional.identification import two_way_identification
from eegrecon.metrics.identification import TwoWayIdentification, first_of_each


def features():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(10, 6, generator=generator)
    return true + torch.randn(10, 6, generator=generator), true, torch.arange(100, 110)


def test_batches_do_not_matter():
    pred, true, index = features()
    whole = two_way_identification(pred, true).mean()
    for size in (1, 3, 10):
        metric = TwoWayIdentification()
        for i in range(0, 10, size):
            metric.update(pred[i : i + size], true[i : i + size], index[i : i + size])
        assert torch.isclose(metric.compute(), whole)


def test_duplicates_count_once_and_reset_forgets():
    pred, true, index = features()
    metric = TwoWayIdentification()
    metric.update(pred, true, index)
    metric.update(pred[:3], true[:3], index[:3])
    assert torch.isclose(metric.compute(), two_way_identification(pred, true).mean())
    metric.reset()
    metric.update(true, true, index)
    assert metric.compute() == 1


def test_first_of_each_is_stable():
    assert first_of_each(torch.tensor([2, 2, 0, 1, 0])).tolist() == [2, 3, 0]
