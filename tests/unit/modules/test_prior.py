"""The prior's LightningModule: learning, reproducibility, export."""

import functools

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from eegrecon.callbacks.prior import PriorScores
from eegrecon.diffusion.objectives import build_scheduler
from eegrecon.diffusion.scaled import PointPrior, ScaledPrior
from eegrecon.models.priors.mlp import PriorMLP
from eegrecon.models.priors.unet import PriorUNet
from eegrecon.modules.prior import PriorModule
from eegrecon.modules.prior_objectives import DiffusionObjective, RegressionObjective


def module(network=None, objective=None, **changes):
    torch.manual_seed(0)
    if network is None:
        network = PriorUNet(4, 4, hidden=[64, 32], time_embed_dim=16)
        scaled = ScaledPrior(network, build_scheduler(prediction_type="sample"), dim=4, cond_dim=4)
    else:
        scaled = PointPrior(network, dim=4, cond_dim=4)
    scaled.fit(*[torch.stack([row[key] for row in data(256)]) for key in ("image_embeds", "eeg_embeds")])
    settings = {"optimizer": functools.partial(torch.optim.AdamW, lr=3e-3), "num_inference_steps": 10, "seed": 1}
    return PriorModule(scaled, objective or DiffusionObjective(), **(settings | changes))


def data(count, start=0):
    """Image embeddings with mean 3 and spread 2; the EEG embedding is the image's, rotated and blurred."""
    generator = torch.Generator().manual_seed(start)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(99)))[0]
    image, noise = torch.randn(2, count, 4, generator=generator)
    return [
        {"image_embeds": 2 * image[i] + 3, "eeg_embeds": (image[i] @ turn + 0.3 * noise[i]),
         "subject": torch.tensor(1), "image_index": torch.tensor(start + i)}
        for i in range(count)
    ]  # fmt: skip


def trainer(path, **changes):
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "callbacks": [PriorScores()]}
    return lightning.Trainer(default_root_dir=path, **dict.fromkeys(off, False) | settings | changes)


def loaders():
    return DataLoader(data(256), batch_size=64), DataLoader(data(64, start=1000), batch_size=40)


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
def test_learns_the_condition(tmp_path):
    model = module(lr_schedule="cosine", warmup_steps=5)
    run = trainer(tmp_path, max_epochs=40, check_val_every_n_epoch=40, num_sanity_val_steps=0)
    run.fit(model, *loaders())
    scores = {key: float(value) for key, value in run.callback_metrics.items()}
    assert scores["val/prior_cosine"] > 0.85 > scores["val/prior_cosine_shuffled"] + 0.1
    assert 0.8 < scores["val/prior_norm_ratio"] < 1.25
    assert scores["val/prior_loss"] < 0.6


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
def test_same_seed_same_weights(tmp_path):
    states = []
    for _ in range(2):
        model = module(objective=DiffusionObjective(cond_noise=0.5))
        model.prior.network.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, torch.nn.Dropout) else None)
        torch.manual_seed(len(states))  # nothing else may depend on the global generator
        trainer(tmp_path, limit_val_batches=0).fit(model, *loaders())
        states.append(model.exported_state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
def test_validation_does_not_depend_on_batch_size(tmp_path):
    model = module()
    results = [
        trainer(tmp_path).validate(model, DataLoader(data(64, 1000), batch_size=size), verbose=False)[0]
        for size in (64, 10)
    ]
    assert results[0].keys() == results[1].keys()
    assert results[0] == pytest.approx(results[1], abs=1e-5)


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
def test_moving_average_is_what_is_exported(tmp_path):
    model = module(ema_decay=0.99)
    trainer(tmp_path, limit_val_batches=0).fit(model, *loaders())
    raw, exported = model.prior.state_dict(), model.exported_state()
    assert raw.keys() == exported.keys()
    assert torch.equal(raw["target_scale"], exported["target_scale"])
    assert not torch.equal(raw["network.output.weight"], exported["network.output.weight"])
    assert torch.equal(model.ema_network.output.weight, exported["network.output.weight"])
    assert module().exported_state().keys() == raw.keys()


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
def test_a_regression_learns_what_least_squares_finds(tmp_path):
    """Oracle: numpy's least squares on the same standardised rows."""
    torch.manual_seed(0)
    model = module(
        PriorMLP(4, 4, hidden=[]), RegressionObjective(), optimizer=functools.partial(torch.optim.Adam, lr=0.02)
    )
    run = trainer(tmp_path, max_epochs=80, check_val_every_n_epoch=80, num_sanity_val_steps=0)
    run.fit(model, *loaders())
    x, y = (np.stack([row[key].numpy() for row in data(256)]) for key in ("eeg_embeds", "image_embeds"))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    design = np.c_[x, np.ones(len(x))]
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    held_out = torch.stack([row["eeg_embeds"] for row in data(64, 1000)])
    unit = held_out.numpy() / np.linalg.norm(held_out.numpy(), axis=1, keepdims=True)
    expected = np.c_[unit, np.ones(len(unit))] @ solution
    # 4 steps an epoch of noisy gradients: near, not equal
    np.testing.assert_allclose(model.prior.sample(held_out).numpy(), expected, atol=0.15)
    assert run.callback_metrics["val/prior_cosine"] > 0.85
    assert run.callback_metrics["val/prior_norm_ratio"] < 1


@pytest.mark.parametrize("bad", [{"ema_decay": 1.0}, {"lr_schedule": "step"}])
def test_numbers_outside_their_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        module(**bad)
