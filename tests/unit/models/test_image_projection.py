import pytest
import torch

from eegrecon.config import IMAGE_PROJECTIONS, Choice
from eegrecon.errors import ConfigError
from eegrecon.registry import resolve


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_leads_to_the_shared_space_and_learns(name):
    for dim in (None, 3):
        net = resolve(IMAGE_PROJECTIONS, Choice(name, {"dim": dim}), target_dim=5)
        assert net.dim == (dim or 5)
        out = net(torch.randn(4, 5))
        assert out.shape == (4, net.dim)
        out.square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_none_is_none_and_takes_no_arguments():
    assert resolve(IMAGE_PROJECTIONS, Choice("none"), target_dim=5) is None
    with pytest.raises(ConfigError, match="'dim' is not an argument"):
        resolve(IMAGE_PROJECTIONS, Choice("none", {"dim": 3}), target_dim=5)
