import pytest
import torch

from eegrecon.losses.regression import cosine_embedding, mse_embedding, mse_latent


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


def test_cosine_oracle_and_known_points():
    torch.manual_seed(0)
    value, target = torch.randn(5, 7), torch.randn(5, 7)
    v, t = value.double().numpy(), target.double().numpy()
    wanted = 1 - (v * t).sum(1) / (v**2).sum(1) ** 0.5 / (t**2).sum(1) ** 0.5
    assert cosine_embedding(value, target).item() == pytest.approx(wanted.mean(), rel=1e-5)
    assert cosine_embedding(value, target, reduce=False).tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    assert cosine_embedding(value, 3 * value).item() == pytest.approx(0, abs=1e-6)
    assert cosine_embedding(torch.randn(4000, 64), torch.randn(4000, 64)).item() == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="one shape"):
        cosine_embedding(value, target[:1])
