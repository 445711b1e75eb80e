"""The sampler against targets whose perfect network is known in closed form."""

import math

import pytest
import torch

from eegrecon.config import Choice
from eegrecon.diffusion.objectives import PREDICTION_TYPES, build_scheduler
from eegrecon.diffusion.samplers import row_generators, sample_embeds, stable_seed
from eegrecon.diffusion.schedulers import build_solver

MEAN = torch.tensor([1.5, -0.5, 0.0])
MIX = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.8]])
COV = MIX @ MIX.T


def gaussian_network(scheduler, mean, cov):
    """The perfect network for the target N(mean, cov): the posterior mean of the clean vector, as the type asks."""

    def network(noisy, timestep, eeg_embeds=None, cond_mask=None):
        a = scheduler.alphas_cumprod[int(timestep[0])]
        centre = mean.expand_as(noisy)
        if eeg_embeds is not None:  # the condition shifts the mean; a masked row has none
            keep = torch.ones(len(noisy)) if cond_mask is None else (~cond_mask).float()
            centre = centre + keep[:, None] * eeg_embeds
        gain = a.sqrt() * cov @ torch.linalg.inv(a * cov + (1 - a) * torch.eye(len(cov)))
        clean = centre + (noisy - a.sqrt() * centre) @ gain.T
        noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        kind = scheduler.config.prediction_type
        return {"epsilon": noise, "sample": clean, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * clean}[kind]

    return network


def sample(rows=16, *, scheduler=None, network=None, condition=None, seed=0, **settings):
    scheduler = scheduler or build_scheduler()
    network = network or gaussian_network(scheduler, MEAN, COV)
    settings = {"num_inference_steps": 20} | settings
    return sample_embeds(
        network, scheduler, condition, dim=3, generators=row_generators(seed, list(range(rows))), **settings
    )


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_recovers_a_gaussian(kind):
    sampled = sample(3000, scheduler=build_scheduler(prediction_type=kind), num_inference_steps=100)
    assert torch.allclose(sampled.mean(0), MEAN, atol=0.1)
    assert torch.allclose(torch.cov(sampled.T), COV, atol=0.12)


def test_point_target_is_returned_exactly():
    """A target without spread: every sample is its mean."""
    scheduler = build_scheduler(prediction_type="sample")
    sampled = sample(scheduler=scheduler, network=lambda noisy, *_: MEAN.expand_as(noisy))
    assert torch.allclose(sampled, MEAN.expand(16, 3), atol=1e-6)


def test_one_step_with_a_perfect_network_returns_the_target():
    scheduler = build_scheduler(prediction_type="sample")
    truth = torch.randn(16, 3, generator=torch.Generator().manual_seed(2)) * 20
    sampled = sample(scheduler=scheduler, network=lambda *_: truth, num_inference_steps=1)
    assert torch.allclose(sampled, truth, atol=1e-6)


def test_clipping_sampler_shrinks_what_ours_keeps():
    """facts/atm.md point 7: the default clip of diffusers cuts un-normalised embeddings."""
    truth = torch.tensor([[13.6, 0.5, -6.0]])
    norms = {}
    for clip in (False, True):
        scheduler = build_scheduler(prediction_type="sample", clip_sample=clip)
        norms[clip] = sample(1, scheduler=scheduler, network=lambda *_: truth).norm()
    assert torch.allclose(norms[False], truth.norm(), rtol=1e-5)
    assert norms[True] < 0.15 * truth.norm()


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_clipping_costs_a_standardised_target_what_the_config_says(name):
    """Oracle: integrals over a normal value x. E[clip(x)²] = 1 - 2φ(1) and E[x clip(x)] = P(|x| < 1)."""
    square = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)
    inside = math.erf(1 / math.sqrt(2))
    assert (math.sqrt(square), inside / math.sqrt(square)) == pytest.approx((0.72, 0.95), abs=0.005)
    truth = torch.randn(16, 4096, generator=torch.Generator().manual_seed(0))
    clipping = build_scheduler(prediction_type="sample", clip_sample=True)
    clipped = sample_embeds(
        lambda *_: truth, build_solver(clipping, Choice(name)).scheduler, None, dim=4096,
        generators=row_generators(0, range(16)), num_inference_steps=5,
    )  # fmt: skip
    assert torch.cosine_similarity(clipped, truth).mean() == pytest.approx(inside / math.sqrt(square), abs=0.005)
    assert (clipped.norm(dim=1) / truth.norm(dim=1)).mean() == pytest.approx(math.sqrt(square), abs=0.01)


def test_guidance_one_is_conditional_and_zero_unconditional():
    condition = torch.randn(16, 3, generator=torch.Generator().manual_seed(3))
    scheduler = build_scheduler()
    network = gaussian_network(scheduler, MEAN, COV)
    conditional = sample_embeds(
        lambda noisy, t, c=None, m=None: network(noisy, t, condition),
        scheduler, None, dim=3, generators=row_generators(0, range(16)), num_inference_steps=20,
    )  # fmt: skip
    assert torch.equal(sample(condition=condition, guidance_scale=1.0), conditional)
    assert torch.equal(sample(condition=condition, guidance_scale=0.0), sample())
    assert not torch.allclose(conditional, sample())


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_guidance_moves_along_the_difference(kind):
    """A linear network shifted by the condition: guidance g samples what the condition times g would."""
    condition = torch.randn(16, 3, generator=torch.Generator().manual_seed(3))
    scheduler = build_scheduler(prediction_type=kind)
    guided = sample(scheduler=scheduler, condition=condition, guidance_scale=2.5)
    assert torch.allclose(guided, sample(scheduler=scheduler, condition=2.5 * condition), atol=2e-3)


def test_rows_do_not_depend_on_the_batch():
    condition = torch.randn(16, 3, generator=torch.Generator().manual_seed(3))
    scheduler = build_scheduler()
    network = gaussian_network(scheduler, MEAN, COV)

    def rows(keep):
        return sample_embeds(
            network, scheduler, condition[keep], dim=3, generators=row_generators(7, keep), guidance_scale=3.0,
            num_inference_steps=20,
        )  # fmt: skip

    whole = rows(list(range(16)))
    assert torch.equal(whole, rows(list(range(16))))
    for size in (1, 5):
        parts = torch.cat([rows(list(range(at, min(at + size, 16)))) for at in range(0, 16, size)])
        assert torch.allclose(whole, parts, atol=1e-5)
    order = [3, 0, 9]
    assert torch.allclose(rows(order), whole[order], atol=1e-5)


def test_scheduler_is_left_alone():
    scheduler = build_scheduler()
    before = scheduler.timesteps.clone()
    sample(scheduler=scheduler)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.num_inference_steps is None


def test_one_generator_per_row():
    with pytest.raises(ValueError, match="4 rows, got 3"):
        sample(3, condition=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="at least one row"):
        sample(0)


def test_seeds_are_stable_and_ordered():
    assert stable_seed(0, 8, 17) == 3203002549451107646
    assert len({stable_seed(a, b) for a in range(20) for b in range(20)}) == 400
    assert all(0 <= stable_seed(seed) < 2**63 for seed in range(100))
    first, again = (torch.randn(4, generator=row_generators(5, [1], [2])[0]) for _ in range(2))
    assert torch.equal(first, again)
