"""What priors are trained for."""

import numpy as np
import pytest
import torch

from eegrecon.diffusion.scaled import PointPrior
from eegrecon.models.priors.linear import NoPrior
from eegrecon.modules.prior_objectives import DiffusionObjective, RegressionObjective


def prior_and_rows(rows=6):
    generator = torch.Generator().manual_seed(0)
    image_embeds = torch.randn(rows, 3, generator=generator) * torch.tensor([0.1, 1.0, 9.0]) + 2
    eeg_embeds = torch.randn(rows, 3, generator=generator)
    prior = PointPrior(NoPrior(3, 3), dim=3, cond_dim=3)
    prior.fit(image_embeds, eeg_embeds, cond_scale="std")
    return prior, image_embeds, eeg_embeds


@pytest.mark.parametrize(("mse", "cosine"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.3)])
def test_the_regression_is_the_formula(mse, cosine):
    """Oracle: numpy; the mse between standardised embeddings, the cosine between restored ones."""
    prior, image_embeds, eeg_embeds = prior_and_rows()
    images, eeg = image_embeds.double().numpy(), eeg_embeds.double().numpy()
    predicted = (eeg - eeg.mean(0)) / eeg.std(0, ddof=1)
    target = (images - images.mean(0)) / images.std(0, ddof=1)
    restored = predicted * images.std(0, ddof=1) + images.mean(0)
    angle = (restored * images).sum(1) / np.linalg.norm(restored, axis=1) / np.linalg.norm(images, axis=1)
    expected = mse * ((predicted - target) ** 2).mean(1) + cosine * (1 - angle)
    objective = RegressionObjective(mse, cosine)
    losses = objective.row_losses(prior, prior.network, image_embeds, eeg_embeds, [])
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4)
    whole = objective.training_loss(prior, image_embeds, eeg_embeds, seed=0, rank=0, world_size=1)
    assert float(whole) == pytest.approx(expected.mean(), rel=1e-4)


def test_noise_on_the_condition_comes_from_the_step_and_is_shared_out_among_ranks():
    prior, image_embeds, eeg_embeds = prior_and_rows()
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, eeg_embeds):
            seen.append(eeg_embeds)
            return eeg_embeds

    prior.network = Spy()
    objective = RegressionObjective(cond_noise=0.5)
    objective.training_loss(prior, image_embeds, eeg_embeds, seed=3, rank=0, world_size=1)
    for rank in range(2):
        part = slice(3 * rank, 3 * rank + 3)
        objective.training_loss(prior, image_embeds[part], eeg_embeds[part], seed=3, rank=rank, world_size=2)
    torch.testing.assert_close(torch.cat(seen[1:]), seen[0])
    noise = seen[0] - prior.standardise_cond(eeg_embeds)
    assert 0.2 < noise.std() < 0.8
    objective.training_loss(prior, image_embeds, eeg_embeds, seed=4, rank=0, world_size=1)
    assert not torch.allclose(seen[-1], seen[0])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DiffusionObjective(cond_drop=1.5), "cond_drop"),
        (lambda: DiffusionObjective(cond_noise=-1.0), "cond_noise"),
        (lambda: RegressionObjective(cond_noise=-1.0), "cond_noise"),
        (lambda: RegressionObjective(0.0, 0.0), "one of them above 0"),
        (lambda: RegressionObjective(-1.0, 1.0), "at least 0"),
    ],
)
def test_numbers_outside_their_range_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
