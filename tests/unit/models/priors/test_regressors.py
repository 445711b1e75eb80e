"""The networks that say one embedding a condition."""

import pytest
import torch

from eegrecon.models.priors.linear import NoPrior, PriorRidge
from eegrecon.models.priors.mlp import PriorMLP


def test_mlp_has_the_layers_asked_for():
    network = PriorMLP(dim=5, cond_dim=3, hidden=[8, 4])
    # (3*8 + 8 + 2*8) + (8*4 + 4 + 2*4) + (4*5 + 5)
    assert sum(p.numel() for p in network.parameters()) == 48 + 44 + 25
    assert network(torch.randn(2, 3)).shape == (2, 5)
    assert PriorMLP(5, 3, hidden=[])(torch.randn(2, 3)).shape == (2, 5)


def test_mlp_rows_do_not_depend_on_the_batch():
    network = PriorMLP(5, 3, hidden=[8]).eval()
    x = torch.randn(6, 3)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]))


@pytest.mark.parametrize(("args", "words"), [({"hidden": [8, 0]}, "hidden"), ({"dropout": 1.0}, "dropout")])
def test_mlp_refuses_what_cannot_be_built(args, words):
    with pytest.raises(ValueError, match=words):
        PriorMLP(5, 3, **args)


def test_ridge_takes_weights():
    network = PriorRidge(dim=2, cond_dim=3, alphas=[1, 2])
    weight, bias = torch.randn(2, 3), torch.randn(2)
    network.set_weights(weight, bias)
    x = torch.randn(4, 3)
    torch.testing.assert_close(network(x), x @ weight.T + bias)
    assert network.alphas == (1, 2)


def test_none_passes_on_what_it_is_given_and_refuses_other_sizes():
    x = torch.randn(4, 3)
    assert torch.equal(NoPrior(3, 3)(x), x)
    with pytest.raises(ValueError, match=r"embeddings of 4 numbers on as image embeddings of 3.*choose mlp or ridge"):
        NoPrior(3, 4)
