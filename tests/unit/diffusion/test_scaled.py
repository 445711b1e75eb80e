"""The prior's standardisation."""

import numpy as np
import pytest
import torch

from eegrecon.diffusion.objectives import build_scheduler
from eegrecon.diffusion.samplers import row_generators
from eegrecon.diffusion.scaled import PointPrior, ScaledPrior


class Silent(torch.nn.Module):
    """Always says that the clean, standardised vector is 0: the target's mean."""

    def forward(self, noisy, timestep, eeg_embeds=None, cond_mask=None):
        return torch.zeros_like(noisy)


def build():
    return ScaledPrior(Silent(), build_scheduler(prediction_type="sample"), dim=3, cond_dim=2)


def data(rows=50):
    generator = torch.Generator().manual_seed(0)
    image_embeds = torch.randn(rows, 3, generator=generator) * torch.tensor([0.03, 1.0, 13.0]) + torch.tensor(
        [1.0, 0, -5]
    )
    return image_embeds, torch.randn(rows, 2, generator=generator) * 4 + 1


def test_fit_is_numpys_moments():
    prior = build()
    image_embeds, eeg_embeds = data()
    prior.fit(image_embeds, eeg_embeds, cond_scale="std")
    assert np.allclose(prior.target_mean, image_embeds.numpy().mean(0), atol=1e-5)
    assert np.allclose(prior.target_scale, image_embeds.numpy().std(0, ddof=1), rtol=1e-5)
    assert np.allclose(prior.cond_mean, eeg_embeds.numpy().mean(0), atol=1e-5)
    assert np.allclose(prior.cond_scale, eeg_embeds.numpy().std(0, ddof=1), rtol=1e-5)


def test_standardised_targets_have_unit_variance_and_come_back():
    prior = build()
    image_embeds, eeg_embeds = data()
    prior.fit(image_embeds, eeg_embeds)
    standardised = prior.standardise_target(image_embeds)
    assert torch.allclose(standardised.std(0), torch.ones(3), atol=1e-4)
    assert torch.allclose(prior.restore_target(standardised), image_embeds, atol=1e-4)
    assert torch.allclose(prior.standardise_cond(eeg_embeds).mean(0), torch.zeros(2), atol=1e-4)


def test_unit_condition_has_no_length():
    prior = build()
    image_embeds, eeg_embeds = data()
    prior.fit(image_embeds, eeg_embeds)
    lengths = torch.rand(50, 1) * 9 + 0.1
    assert torch.allclose(prior.standardise_cond(lengths * eeg_embeds), prior.standardise_cond(eeg_embeds), atol=1e-5)
    assert torch.allclose(prior.standardise_cond(eeg_embeds).std(0), torch.ones(2), atol=1e-4)
    prior.fit(image_embeds, eeg_embeds, cond_scale="std")
    assert not torch.allclose(prior.standardise_cond(9 * eeg_embeds), prior.standardise_cond(eeg_embeds), atol=0.1)


def test_none_leaves_the_target_as_it_is():
    prior = build()
    prior.fit(*data(), target_scale="none")
    assert torch.equal(prior.target_scale, torch.ones(3))
    assert torch.equal(prior.target_mean, torch.zeros(3))
    assert not torch.equal(prior.cond_scale, torch.ones(2))


def test_constant_dimension_keeps_scale_one():
    prior = build()
    image_embeds, eeg_embeds = data()
    image_embeds[:, 1] = 7.0
    prior.fit(image_embeds, eeg_embeds)
    assert prior.target_scale[1] == 1
    assert torch.equal(prior.standardise_target(image_embeds)[:, 1], torch.zeros(50))


def test_bad_fits_are_refused():
    image_embeds, eeg_embeds = data()
    with pytest.raises(ValueError, match="std, none"):
        build().fit(image_embeds, eeg_embeds, target_scale="unit")
    with pytest.raises(ValueError, match="unit, std"):
        build().fit(image_embeds, eeg_embeds, cond_scale="none")
    with pytest.raises(ValueError, match="at least two"):
        build().fit(image_embeds[:1], eeg_embeds)


def test_samples_are_in_target_units_and_the_mode_is_kept():
    prior = build().train()
    prior.fit(*data())
    sampled = prior.sample(torch.zeros(4, 2), generators=row_generators(0, range(4)), num_inference_steps=3)
    assert torch.allclose(sampled, prior.target_mean.expand(4, 3), atol=1e-4)
    assert prior.network.training


def test_scaling_travels_with_the_weights():
    prior = build()
    prior.fit(*data())
    other = build()
    other.load_state_dict(prior.state_dict(), strict=True)
    assert set(prior.state_dict()) == {"target_mean", "target_scale", "cond_mean", "cond_scale", "cond_unit"}
    assert torch.equal(other.target_scale, prior.target_scale)


class Linear(torch.nn.Module):
    """A fixed linear map with dropout, which must be off while sampling."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.matrix = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])

    def forward(self, eeg_embeds):
        return self.dropout(eeg_embeds @ self.matrix)


def test_a_point_prior_is_its_network_between_the_two_scalings():
    """Oracle: the formula in numpy."""
    prior = PointPrior(Linear(), dim=3, cond_dim=2).train()
    image_embeds, eeg_embeds = data()
    prior.fit(image_embeds, eeg_embeds)
    unit = eeg_embeds.numpy() / np.linalg.norm(eeg_embeds.numpy(), axis=1, keepdims=True)
    condition = (unit - unit.mean(0)) / unit.std(0, ddof=1)
    images = image_embeds.numpy()
    expected = condition @ prior.network.matrix.numpy() * images.std(0, ddof=1) + images.mean(0)
    np.testing.assert_allclose(prior.sample(eeg_embeds).numpy(), expected, rtol=1e-3, atol=1e-3)
    assert prior.network.training


def test_a_point_prior_takes_what_a_diffusion_takes_and_ignores_it():
    prior = PointPrior(Linear(), dim=3, cond_dim=2)
    _, eeg_embeds = data(4)
    generators = row_generators(0, range(4))
    states = [generator.get_state() for generator in generators]
    sampled = prior.sample(eeg_embeds, generators=generators, guidance_scale=5.0, num_inference_steps=3)
    assert torch.equal(sampled, prior.sample(eeg_embeds))
    assert all(torch.equal(g.get_state(), state) for g, state in zip(generators, states, strict=True))


def test_sampling_through_another_network_leaves_its_own_alone():
    prior = PointPrior(Linear(), dim=3, cond_dim=2)
    other = Linear().train()
    other.matrix = 2 * other.matrix
    _, eeg_embeds = data(4)
    torch.testing.assert_close(prior.sample(eeg_embeds, network=other), 2 * prior.sample(eeg_embeds))
    assert other.training
