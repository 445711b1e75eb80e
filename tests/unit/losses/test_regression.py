import pytest
import torch

from eegrecon.losses.regression import mse_embedding, mse_latent


@pytest.mark.parametrize(("loss", "shape"), [(mse_embedding, (5, 7)), (mse_latent, (5, 4, 2, 3))])
def test_oracle_and_known_points(loss, shape):
    torch.manual_seed(0)
    value, target = torch.randn(shape), torch.randn(shape)
    assert loss(value, target).item() == pytest.approx(((value - target) ** 2).numpy().mean(), rel=1e-5)
    rows = loss(value, target, reduce=False)
    assert rows.shape == (5,)
    assert rows.mean().item() == pytest.approx(loss(value, target).item(), rel=1e-5)
    assert loss(value, value).item() == 0
    unit = torch.randn(4000, *shape[1:])
    assert loss(torch.zeros_like(unit), unit).item() == pytest.approx(1, abs=0.03)  # predicting the mean


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        mse_embedding(torch.zeros(3, 4), torch.zeros(4))
