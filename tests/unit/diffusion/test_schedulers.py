"""Every scheduler of the registry against a linear-Gaussian toy whose exact conditional is known."""

import re

import numpy as np
import pytest
import torch

from eegrecon.config import SCHEDULERS, Choice
from eegrecon.diffusion.objectives import PREDICTION_TYPES, build_scheduler, training_target
from eegrecon.diffusion.samplers import row_generators, sample_embeds
from eegrecon.diffusion.scaled import PointPrior, ScaledPrior, exact_network
from eegrecon.diffusion.schedulers import build_solver
from eegrecon.errors import ConfigError
from eegrecon.models.priors.linear import NoPrior
from eegrecon.models.priors.unet import PriorUNet

MIX = np.array([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.8]])
PICTURES = MIX @ MIX.T  # covariance of the clean vectors, mean 0
BLUR = 0.5  # variance of the noise between a clean vector and what is seen of it
SEEN = np.array([1.2, -0.7, 0.4])
# The textbook conditional of a clean vector given what is seen of it, in covariance form.
GAIN = PICTURES @ np.linalg.inv(PICTURES + BLUR * np.eye(3))
MEAN, COV = GAIN @ SEEN, PICTURES - GAIN @ PICTURES
CHOICES = {
    **{name: Choice(name) for name in SCHEDULERS},
    "ddim_ancestral": Choice("ddim", {"eta": 1.0}),
    "sde": Choice("dpm_solver_multistep", {"algorithm_type": "sde-dpmsolver++"}),
    "third_order": Choice("dpm_solver_multistep", {"solver_order": 3}),
    "karras": Choice("dpm_solver_multistep", {"use_karras_sigmas": True}),
}
RANDOM = ("ddpm", "ddim_ancestral", "sde", "euler_ancestral_discrete")
NOT_IN_DIFFUSERS = {("euler_ancestral_discrete", "sample")}


def perfect(trained):
    """The posterior mean of the clean vector, given the noisy one and (unless masked) what is seen; information form.

    Float64 inside: a second derivation of the same conditional, which no line of the expected values shares.
    """

    def network(noisy, timestep, eeg_embeds=None, cond_mask=None):
        a = float(trained.alphas_cumprod[int(timestep[0])])
        x = noisy.double()
        told = torch.zeros(len(x), 1, dtype=torch.float64)
        if eeg_embeds is not None:
            told = torch.ones(len(x), 1) if cond_mask is None else (~cond_mask).double()[:, None]
        clean = torch.empty_like(x)
        for weight in told.unique().tolist():
            rows = told[:, 0] == weight
            precision = np.linalg.inv(PICTURES) + np.eye(3) * (weight / BLUR + a / (1 - a))
            pull = np.sqrt(a) / (1 - a) * x[rows]
            if weight:
                pull = pull + eeg_embeds[rows].double() / BLUR
            clean[rows] = pull @ torch.from_numpy(np.linalg.inv(precision))
        noise = (x - np.sqrt(a) * clean) / np.sqrt(1 - a)
        velocity = np.sqrt(a) * noise - np.sqrt(1 - a) * clean
        return {"epsilon": noise, "sample": clean, "v_prediction": velocity}[trained.config.prediction_type].float()

    return network


def sample(choice, rows=16, *, kind="sample", seen=None, network=None, steps=60, guidance_scale=1.0, generators=None):
    trained = build_scheduler(prediction_type=kind)
    solver = build_solver(trained, choice)
    condition = torch.tensor(SEEN).float().expand(rows, 3) if seen is None else seen
    return sample_embeds(
        network or perfect(trained), solver.scheduler, condition, dim=3, num_inference_steps=steps,
        generators=row_generators(0, range(rows)) if generators is None else generators,
        guidance_scale=guidance_scale, step_args=solver.step_args,
    )  # fmt: skip


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("name", CHOICES)
def test_samples_have_the_conditionals_mean_and_covariance(name, kind):
    if (name, kind) in NOT_IN_DIFFUSERS:
        pytest.skip("diffusers does not implement it; the next test sees that it is refused")
    sampled = sample(CHOICES[name], 2500, kind=kind).double().numpy()
    assert sampled.mean(0) == pytest.approx(MEAN, abs=0.06)  # 0.06 is 5 standard errors
    np.testing.assert_allclose(np.cov(sampled.T), COV, atol=0.06)


def test_what_diffusers_does_not_implement_is_a_sentence():
    for name, kind in NOT_IN_DIFFUSERS:
        prior = ScaledPrior(PriorUNet(3, 3, [8, 4], 4), build_scheduler(prediction_type=kind), dim=3, cond_dim=3)
        with pytest.raises(ConfigError, match=rf"'{name}' .* cannot make 5 steps for the prediction type '{kind}'"):
            prior.use_scheduler(Choice(name), 5)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm_solver_multistep", "euler_discrete"])
def test_guidance_is_the_papers_formula_with_g_one_more_than_w(name):
    """One step to a network that says the clean vector returns what guidance makes of the two halves."""
    condition, nothing = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(1))

    def network(noisy, timestep, eeg_embeds=None, cond_mask=None):
        if eeg_embeds is None:
            return nothing
        if cond_mask is None:
            return eeg_embeds.square()
        return torch.where(cond_mask[:, None], nothing.repeat(2, 1), eeg_embeds.square())

    for g in (0.0, 0.5, 1.0, 3.0, 5.0):
        w = g - 1
        expected = (1 + w) * condition.square() - w * nothing
        sampled = sample(CHOICES[name], seen=condition, network=network, steps=1, guidance_scale=g)
        torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CHOICES)
def test_a_row_does_not_depend_on_its_batch_mates(name):
    kind = "epsilon" if (name, "sample") in NOT_IN_DIFFUSERS else "sample"
    seen = torch.randn(12, 3, generator=torch.Generator().manual_seed(3))
    whole = sample(CHOICES[name], 12, kind=kind, seen=seen, guidance_scale=2.0, steps=8)
    for rows in ([5], [9, 2, 5]):
        part = sample(
            CHOICES[name], len(rows), kind=kind, seen=seen[rows], guidance_scale=2.0, steps=8,
            generators=row_generators(0, rows),
        )  # fmt: skip
        torch.testing.assert_close(part, whole[rows], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole[0], sample(CHOICES[name], 1, kind=kind, seen=seen[:1] + 1, steps=8)[0])


@pytest.mark.parametrize("name", CHOICES)
def test_only_the_random_ones_draw_after_the_first_noise(name):
    kind = "epsilon" if (name, "sample") in NOT_IN_DIFFUSERS else "sample"
    generators, one_draw = row_generators(0, range(4)), row_generators(0, range(4))
    sample(CHOICES[name], 4, kind=kind, steps=8, generators=generators)
    for generator in one_draw:
        torch.randn(1, 3, generator=generator)
    still = all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(generators, one_draw, strict=True))
    assert still == (name not in RANDOM)


@pytest.mark.parametrize("name", CHOICES)
def test_a_solver_remembers_nothing_from_one_call_to_the_next(name):
    kind = "epsilon" if (name, "sample") in NOT_IN_DIFFUSERS else "sample"
    trained = build_scheduler(prediction_type=kind)
    solver = build_solver(trained, CHOICES[name])
    settings = {"dim": 3, "num_inference_steps": 6, "step_args": solver.step_args}
    before = solver.scheduler.timesteps.clone()
    first, again = (
        sample_embeds(perfect(trained), solver.scheduler, None, generators=row_generators(0, range(4)), **settings)
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert torch.equal(solver.scheduler.timesteps, before)


def test_the_trained_schedule_is_kept():
    trained = build_scheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    for name in SCHEDULERS:
        config = build_solver(trained, Choice(name)).scheduler.config
        for key in ("prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps"):
            assert config[key] == trained.config[key], (name, key)
        assert config["timestep_spacing"] == "trailing"
    assert build_solver(trained, Choice("ddim")).scheduler.config.clip_sample is False
    spaced = build_solver(trained, Choice("ddim", {"timestep_spacing": "leading"}))
    assert spaced.scheduler.config.timestep_spacing == "leading"


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice("dpm", {}), "'dpm' is not known"),
        (Choice("ddim", {"etta": 1}), r"'etta' is not an argument \(it takes .*eta"),
        (Choice("ddpm", {"eta": 1}), "'eta' is not an argument"),
        (Choice("ddim", {"prediction_type": "epsilon"}), "'prediction_type' is what the prior was trained with"),
        (Choice("ddim", {"clip_sample": True}), "belongs into its block diffusion"),
        (Choice("dpm_solver_multistep", {"algorithm_type": "best"}), "refuses .*best"),
    ],
)
def test_what_does_not_fit_is_refused(choice, words):
    with pytest.raises(ConfigError, match=words):
        build_solver(build_scheduler(), choice)


def test_a_scheduler_that_cannot_clip_is_refused_where_training_says_clip():
    clipping = build_scheduler(clip_sample=True)
    assert build_solver(clipping, Choice("ddim")).scheduler.config.clip_sample is True
    with pytest.raises(ConfigError, match=r"cannot clip.*choose ddpm or ddim"):
        build_solver(clipping, Choice("dpm_solver_multistep"))


def test_too_many_steps_are_a_sentence_before_anything_is_sampled():
    prior = ScaledPrior(PriorUNet(3, 3, [8, 4], 4), build_scheduler(), dim=3, cond_dim=3)
    with pytest.raises(ConfigError, match="cannot make 1001 steps"):
        prior.use_scheduler(Choice("ddpm"), 1001)


def prior_with(kind, beta_schedule):
    trained = build_scheduler(prediction_type=kind, beta_schedule=beta_schedule)
    return ScaledPrior(PriorUNet(3, 3, [8, 4], 4), trained, dim=3, cond_dim=3)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_an_unstable_scheduler_is_refused_and_a_stable_one_is_not(kind):
    """Heun over the cosine schedule: 5 steps turn the exact denoiser of N(0.7, 0.5²) into a spread of 37."""
    prior = prior_with(kind, "squaredcos_cap_v2")
    for steps in (2, 5, 30):
        with pytest.raises(ConfigError) as found:
            prior.use_scheduler(Choice("heun_discrete"), steps)
        assert re.fullmatch(
            rf"sample.scheduler 'heun_discrete' with {{}} cannot make {steps} steps for the prediction type '{kind}': "
            r"over the beta_schedule 'squaredcos_cap_v2' it is unstable and would turn a perfect network's spread of 1 "
            r"into [\d.e+]+; take more steps or another scheduler\.",
            str(found.value),
        )
    prior.use_scheduler(Choice("heun_discrete"), 100)
    prior_with(kind, "linear").use_scheduler(Choice("heun_discrete"), 5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 50])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("name", CHOICES)
def test_sound_schedulers_are_kept_however_few_the_steps(name, kind, steps):
    if (name, kind) not in NOT_IN_DIFFUSERS:
        prior_with(kind, "linear").use_scheduler(CHOICES[name], steps)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_exact_network_is_the_posterior_mean(kind):
    """Oracle: least squares over draws of clean vectors and noise."""
    trained = build_scheduler(prediction_type=kind)
    clean, noise = torch.randn(2, 200_000, 1, generator=torch.Generator().manual_seed(0))
    for step in (50, 400, 900):
        timestep = torch.full((len(clean),), step)
        noisy, target = trained.add_noise(clean, noise, timestep), training_target(trained, clean, noise, timestep)
        slope = (noisy * target).sum() / noisy.square().sum()
        torch.testing.assert_close(exact_network(trained)(noisy, timestep), slope * noisy, atol=0.03, rtol=0)


def test_a_prior_samples_with_the_scheduler_it_was_told_to_use():
    torch.manual_seed(0)
    network = PriorUNet(3, 3, [8, 4], 4).eval()
    trained = build_scheduler(prediction_type="sample")
    prior, eeg_embeds = ScaledPrior(network, trained, dim=3, cond_dim=3), torch.randn(4, 3)
    prior.use_scheduler(Choice("dpm_solver_multistep"), 5)
    assert prior.scheduler is trained
    found = prior.sample(eeg_embeds, generators=row_generators(0, range(4)), num_inference_steps=5)
    expected = sample(Choice("dpm_solver_multistep"), 4, seen=eeg_embeds, network=network, steps=5)
    assert torch.equal(found, expected)
    PointPrior(NoPrior(3, 3), dim=3, cond_dim=3).use_scheduler(Choice("ddim"), 5)
