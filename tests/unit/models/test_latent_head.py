import torch

from eegrecon.models.latent_head import LatentHead


def test_shape_and_gradient():
    head = LatentHead(8, (4, 3, 2), hidden=5)
    x = torch.randn(6, 8, requires_grad=True)
    y = head(x)
    assert y.shape == (6, 4, 3, 2)
    y.sum().backward()
    assert torch.isfinite(x.grad).all()
