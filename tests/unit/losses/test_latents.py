"""The loss of the low-level pathway: independent oracles, perfect and chance."""

import numpy as np
import pytest
import torch

from eegrecon.losses.latents import LatentObjective
from eegrecon.losses.regression import l1_latent


def pair(n=5, shape=(4, 3, 2)):
    torch.manual_seed(0)
    return torch.randn(n, *shape), torch.randn(n, *shape)


def test_l1_oracle_and_known_points():
    value, target = pair()
    assert l1_latent(value, target).item() == pytest.approx(np.abs(value.numpy() - target.numpy()).mean(), rel=1e-5)
    rows = l1_latent(value, target, reduce=False)
    assert rows.tolist() == pytest.approx([np.abs((v - t).numpy()).mean() for v, t in zip(value, target, strict=True)])
    assert l1_latent(value, value).item() == 0
    unit = torch.randn(4000, 4, 3, 2)
    # a standard normal number's mean distance from its mean
    assert l1_latent(torch.zeros_like(unit), unit).item() == pytest.approx((2 / np.pi) ** 0.5, abs=0.01)
    with pytest.raises(ValueError, match="one shape"):
        l1_latent(value, target[:1])


def test_terms_and_their_weighted_sum():
    value, target = pair()
    terms = LatentObjective(l1=2.0, mse=0.5).terms(value, target)
    assert set(terms) == {"l1", "mse"}
    difference = (value - target).numpy()
    assert terms["mse"].tolist() == pytest.approx((difference**2).mean((1, 2, 3)).tolist(), rel=1e-5)
    total = LatentObjective(l1=2.0, mse=0.5).total({name: rows.mean() for name, rows in terms.items()})
    assert total.item() == pytest.approx(2 * np.abs(difference).mean() + 0.5 * (difference**2).mean(), rel=1e-5)


def test_the_image_term_compares_decoded_pictures_and_teaches_the_prediction_alone():
    value, target = pair()
    value.requires_grad_()
    target.requires_grad_()

    def decode(latents):
        return 3 * latents[:, :3]

    objective = LatentObjective(l1=0.0, mse=0.0, image=2.0)
    terms = objective.terms(value, target, decode)
    wanted = 9 * ((value - target)[:, :3] ** 2).mean((1, 2, 3))
    torch.testing.assert_close(terms["image"], wanted)
    objective.total({"image": terms["image"].mean()}).backward()
    assert target.grad is None
    assert (value.grad[:, :3] != 0).all()
    assert (value.grad[:, 3] == 0).all()


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 2, 0)])
def test_weights_must_make_a_loss(weights):
    with pytest.raises(ValueError, match="weights of at least 0, one of them above 0"):
        LatentObjective(*weights)
