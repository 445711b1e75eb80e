"""Alone, the collectives do nothing; two processes are compared in tests/ddp."""

import torch
from torch import nn

from eegrecon.models.encoders.atm_s import ATMS
from eegrecon.modules.distributed import (
    GlobalBatchNorm,
    all_gather_rows,
    all_reduce_mean,
    synchronise_batch_statistics,
)


def test_collectives_are_the_identity_in_one_process():
    x = torch.randn(3, 2)
    assert all_gather_rows(x) is x
    assert all_reduce_mean(x) is x


def test_conversion_keeps_parameters_state_and_results():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Sequential(nn.BatchNorm1d(6, momentum=0.3)))
    x = torch.randn(8, 4)
    before, parameters, state = net(x), dict(net.named_parameters()), net.state_dict()
    synchronise_batch_statistics(net)
    assert isinstance(net[1], GlobalBatchNorm)
    assert isinstance(net[3][0], GlobalBatchNorm)
    assert net[3][0].momentum == 0.3
    torch.testing.assert_close(net(x), before)
    assert net.state_dict().keys() == state.keys()
    assert all(p is parameters[name] for name, p in net.named_parameters())


def test_modules_with_statistics_of_their_own_are_told():
    net = synchronise_batch_statistics(ATMS(3, 80, 4))
    assert net.conv.mean_over_ranks is all_reduce_mean
