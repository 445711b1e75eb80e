"""What every low-level network of the registry must do; a new one gets these checks by its line in `LOW_LEVEL`."""

import inspect

import pytest
import torch

from eegrecon.config import LOW_LEVEL, Choice
from eegrecon.errors import ConfigError
from eegrecon.models.low_level.upsampling import UpSampling, check_latents
from eegrecon.registry import lookup, resolve

SMALL = {"n_chans": 5, "n_times": 40, "latent_shape": (4, 8, 8)}


@pytest.fixture(params=LOW_LEVEL)
def name(request):
    torch.manual_seed(0)
    return request.param


def build(name, **facts):
    return resolve(LOW_LEVEL, Choice(name), **(SMALL | facts))


def batch(n=6):
    return torch.randn(n, SMALL["n_chans"], SMALL["n_times"]), torch.arange(n) % 3


@pytest.mark.parametrize("shape", [(4, 2, 2), (4, 4, 4), (4, 16, 16), (3, 32, 32)])
def test_gives_latents_of_any_power_of_two(name, shape):
    latents = build(name, latent_shape=shape).eval()(*batch(2))
    assert latents.shape == (2, *shape)
    assert latents.dtype == torch.float32


def test_every_parameter_and_every_number_of_the_trial_matters(name):
    network = build(name)
    eeg, subject = batch()
    eeg.requires_grad_()
    network(eeg, subject).sin().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert (eeg.grad.abs().sum(0) > 0).all()


def test_a_trial_does_not_depend_on_its_batch_when_evaluated(name):
    network = build(name).eval()
    eeg, subject = batch()
    with torch.inference_mode():
        alone = torch.cat([network(eeg[i : i + 1], subject[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(network(eeg, subject), alone, atol=1e-5, rtol=1e-5)


def test_overfits_a_few_trials(name):
    if name == "ridge":
        pytest.skip("ridge is fitted in closed form")
    network = build(name)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    eeg, subject = batch()
    target = torch.randn(6, *SMALL["latent_shape"])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = (network(eeg, subject) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_signature_holds_facts_of_the_data_first(name):
    parameters = list(inspect.signature(lookup(LOW_LEVEL, name)).parameters.values())
    assert [item.name for item in parameters[:3]] == ["n_chans", "n_times", "latent_shape"]
    assert all(item.default is not inspect.Parameter.empty for item in parameters[3:])


@pytest.mark.parametrize("shape", [(4, 12, 12), (4, 16, 8), (4, 1, 1), (256,)])
def test_other_shapes_are_refused_in_a_sentence(name, shape):
    if name == "ridge":
        assert build(name, latent_shape=shape)(*batch(2)).shape == (2, *shape)
        return
    with pytest.raises(ConfigError, match=rf"The network {name} makes latents of .* name latents of square pictures"):
        build(name, latent_shape=shape)


def test_the_number_of_doublings():
    assert [check_latents("x", (4, 2**k, 2**k)) for k in (1, 4, 6)] == [(4, 1), (4, 4), (4, 6)]


def test_the_papers_network_has_the_published_parameters():
    with torch.device("meta"):
        network = UpSampling(63, 250, (4, 64, 64))
    # facts/atm.md section 5; the one that is missing is `logit_scale`, of a loss that the official code comments out
    assert sum(p.numel() for p in network.parameters()) == 143_333_269 - 1
    shapes = [tuple(p.shape) for key, p in network.named_parameters() if key.endswith("weight") and p.ndim == 4]
    assert shapes == [
        (8064, 1024, 4, 4), (1024, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 32, 4, 4),
        (32, 16, 1, 1), (16, 4, 1, 1),
    ]  # fmt: skip


def test_the_papers_network_is_computed_as_published():
    """The first transposed convolution as a matrix product, against the layer itself, with gradients."""
    torch.manual_seed(0)
    network = UpSampling(5, 40, (4, 8, 8), features=6, width=4)
    eeg, subject = batch()
    found, wanted = network(eeg, subject), network.plain(eeg)
    torch.testing.assert_close(found, wanted)
    for output in (found, wanted):
        network.zero_grad()
        output.sin().sum().backward()
        grads = [p.grad.clone() for p in network.parameters()]
        first = network.upsampler[0].weight.grad
        assert (first[:, :, 1:3, 1:3] != 0).any()
        assert (first != 0).float().mean() <= 0.25  # three quarters of the kernel never meet the one pixel
        if output is found:
            mine = grads
    torch.testing.assert_close(mine, grads)
