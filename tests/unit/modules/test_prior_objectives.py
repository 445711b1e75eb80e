"""What priors are trained for."""

import numpy as np
import pytest
import torch

from eegrecon.diffusion.objectives import build_scheduler
from eegrecon.diffusion.scaled import PointPrior, ScaledPrior
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


class Seen(torch.nn.Module):
    """A network that remembers what it was shown."""

    def forward(self, noisy, timestep, eeg_embeds=None, cond_mask=None):
        self.noisy, self.cond_mask = noisy, cond_mask
        return torch.zeros_like(noisy)


def seen_targets(objective, rows=4000, **place):
    """The targets of one step, and which rows had no condition."""
    scheduler = build_scheduler(prediction_type="sample")
    scheduler.add_noise = lambda clean, noise, timestep: clean
    prior = ScaledPrior(Seen(), scheduler, dim=2, cond_dim=3)
    image_embeds = torch.stack([torch.arange(rows).float(), torch.zeros(rows)], dim=1)
    place = {"seed": 5, "rank": 0, "world_size": 1} | place
    share = slice(place["rank"] * rows // place["world_size"], (place["rank"] + 1) * rows // place["world_size"])
    objective.training_loss(prior, image_embeds[share], torch.zeros(rows, 3)[share], **place)
    return prior.network.noisy, prior.network.cond_mask


def test_image_only_rows_take_their_share_of_a_batch_and_have_no_condition():
    others = torch.stack([torch.arange(10).float(), torch.ones(10)], dim=1)
    targets, mask = seen_targets(DiffusionObjective(0.1, 0.0, others, 0.3))
    foreign = targets[:, 1] == 1
    assert foreign.float().mean() == pytest.approx(0.3, abs=0.03)  # 4 standard errors
    assert mask[foreign].all()
    assert mask[~foreign].float().mean() == pytest.approx(0.1, abs=0.025)
    assert set(targets[foreign, 0].tolist()) == set(range(10))
    assert torch.equal(targets[~foreign, 0], torch.arange(4000).float()[~foreign])


def test_without_image_only_pictures_nothing_else_changes():
    plain, masked = seen_targets(DiffusionObjective(0.1))
    others = torch.ones(10, 2)
    mixed, mask = seen_targets(DiffusionObjective(0.1, 0.0, others, 0.3))
    own = mixed[:, 1] == 0
    assert torch.equal(plain[own], mixed[own])
    assert torch.equal(masked[own], mask[own])
    assert plain[:, 1].eq(0).all()


def test_two_ranks_mix_in_what_one_process_does():
    objective = DiffusionObjective(0.1, 0.0, torch.ones(10, 2), 0.3)
    whole = seen_targets(objective)
    parts = [seen_targets(objective, rank=rank, world_size=2) for rank in range(2)]
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    assert torch.equal(torch.cat([part[1] for part in parts]), whole[1])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DiffusionObjective(cond_drop=1.5), "cond_drop"),
        (lambda: DiffusionObjective(cond_noise=-1.0), "cond_noise"),
        (lambda: DiffusionObjective(image_only_rate=1.1), "image_only_rate"),
        (lambda: RegressionObjective(cond_noise=-1.0), "cond_noise"),
        (lambda: RegressionObjective(0.0, 0.0), "one of them above 0"),
        (lambda: RegressionObjective(-1.0, 1.0), "at least 0"),
    ],
)
def test_numbers_outside_their_range_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
