"""Schedules, targets, losses and training draws of the prior."""

import pytest
import torch

from eegrecon.diffusion.objectives import PREDICTION_TYPES, build_scheduler, draw_training, prior_loss, training_target


def batch(rows=6, dim=4):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64)
    return clean, noise, torch.randint(0, 1000, (rows,), generator=generator)


def alpha_bar(timestep):
    """Cumulative alpha of the linear schedule, from its definition."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)[timestep][:, None]


def test_clipping_is_off_unless_asked_for():
    assert build_scheduler().config.clip_sample is False
    assert build_scheduler().config.thresholding is False
    assert build_scheduler(clip_sample=True).config.clip_sample is True


def test_unknown_prediction_type_lists_the_choices():
    with pytest.raises(ValueError, match="epsilon, sample, v_prediction"):
        build_scheduler(prediction_type="noise")


def test_schedule_must_end_in_noise():
    with pytest.raises(ValueError, match="cannot start from noise"):
        build_scheduler(num_train_timesteps=100)
    build_scheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", prediction_type="sample")


def test_epsilon_needs_some_signal_at_the_last_step():
    with pytest.raises(ValueError, match="divides its error"):
        build_scheduler(beta_schedule="squaredcos_cap_v2")
    build_scheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_target_and_noisy_vector_determine_the_clean_one(kind):
    """Oracle: solving the forward equation for the clean vector, given the target, returns it."""
    clean, noise, timestep = batch()
    scheduler = build_scheduler(prediction_type=kind)
    target = training_target(scheduler, clean, noise, timestep)
    a = alpha_bar(timestep)
    noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
    recovered = {
        "epsilon": (noisy - (1 - a).sqrt() * target) / a.sqrt(),
        "sample": target,
        "v_prediction": a.sqrt() * noisy - (1 - a).sqrt() * target,
    }[kind]
    assert torch.allclose(recovered, clean, atol=2e-3)  # diffusers keeps its alphas in float32


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_loss_is_zero_for_an_oracle_and_one_for_silence(kind):
    clean, noise, timestep = batch(rows=4000)
    scheduler = build_scheduler(prediction_type=kind)
    target = training_target(scheduler, clean, noise, timestep)
    settings = {"noise": noise, "timestep": timestep}
    perfect = prior_loss(lambda *_: target, scheduler, clean, None, **settings)
    silent = prior_loss(lambda noisy, *_: torch.zeros_like(noisy), scheduler, clean, None, **settings)
    assert perfect == 0
    assert abs(silent - 1) < 0.05


def test_loss_hands_everything_on():
    clean, noise, timestep = batch()
    seen = {}

    def network(noisy, timestep, eeg_embeds, cond_mask):
        seen.update(noisy=noisy, timestep=timestep, eeg_embeds=eeg_embeds, cond_mask=cond_mask)
        return noisy

    mask = torch.zeros(6, dtype=torch.bool)
    prior_loss(network, build_scheduler(), clean, noise, noise=noise, timestep=timestep, cond_mask=mask)
    a = alpha_bar(timestep)
    assert torch.allclose(seen["noisy"], a.sqrt() * clean + (1 - a).sqrt() * noise, atol=1e-4)
    assert seen["timestep"] is timestep
    assert seen["cond_mask"] is mask
    assert seen["eeg_embeds"] is noise


def draws(rows, **changes):
    settings = {"num_train_timesteps": 1000, "cond_drop": 0.1, "seed": 3}
    return draw_training(rows, 4, 5, **(settings | changes))


def test_draws_come_from_the_seed_alone():
    torch.manual_seed(0)
    first = draws(8)
    torch.manual_seed(1)
    again, other = draws(8), draws(8, seed=4)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.timestep, again.timestep)
    assert not torch.equal(first.noise, other.noise)


def test_condition_is_dropped_per_row_at_the_rate_asked_for():
    mask = draws(20000).cond_mask
    assert abs(mask.float().mean() - 0.1) < 0.01  # 0.01 is 4.7 standard errors
    assert draws(1000, cond_drop=0.0).cond_mask.sum() == 0
    assert draws(1000, cond_drop=1.0).cond_mask.all()


def test_timesteps_cover_the_schedule():
    timestep = draws(20000).timestep
    assert timestep.min() == 0
    assert timestep.max() == 999
    assert abs(timestep.double().mean() - 499.5) < 10


def test_two_ranks_draw_what_one_process_draws():
    whole = draws(8)
    for rank in range(2):
        part = draws(4, rank=rank, world_size=2)
        for name in ("timestep", "noise", "cond_mask", "cond_noise"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[4 * rank : 4 * rank + 4])
