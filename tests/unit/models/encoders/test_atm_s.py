"""ATM-S: shapes, the exact folded convolution, the switches."""

import copy

import pytest
import torch

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.atm_s import ATMS, sinusoids
from eegrecon.models.encoders.temporal_spatial import TSConv


def small(**args):
    torch.manual_seed(0)
    return ATMS(5, 90, 8, **args)


def test_parameter_count_is_the_published_one_without_dead_layers():
    # facts/atm.md 2.1: 3,076,913 without subject-wise linears; of these 1,000 (time features), 3,000 (ten subject rows
    # and the mask rows but one) and 1 (logit_scale) belong to parts that do not exist here: see ATMS.
    count = sum(p.numel() for p in ATMS(63, 250, 1024).parameters())
    assert count == 3_076_913 - 1_000 - (3_250 - 250) - 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("n_chans", "n_times"), [(5, 250), (3, 75), (4, 131)])
def test_folded_convolution_equals_the_two_step_form(training, n_chans, n_times):
    torch.manual_seed(1)
    fast = TSConv(n_chans, n_times, dropout=0.0).train(training)
    with torch.no_grad():  # not the initial 0 and 1
        for norm in (fast.tsconv[2], fast.tsconv[5]):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    plain = copy.deepcopy(fast)
    x = 3 * torch.randn(6, n_chans, n_times) + 1
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = fast(inputs[0]), plain.plain(inputs[1])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    pull = torch.randn_like(outputs[0])
    for output in outputs:
        (output * pull).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-4, rtol=1e-4)
    for (name, one), two in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=2e-3, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    for one, two in zip(fast.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_state_dict_keeps_the_published_convolution():
    shapes = {name: tuple(value.shape) for name, value in TSConv(63, 250).state_dict().items()}
    assert shapes["tsconv.0.weight"] == (40, 1, 1, 25)
    assert shapes["tsconv.4.weight"] == (40, 40, 63, 1)
    assert shapes["projection.weight"] == (40, 40, 1, 1)
    assert "spread" not in shapes
    assert TSConv(63, 250).n_features == 1440


@pytest.mark.parametrize("position", ["none", "sinusoidal", "learnable"])
@pytest.mark.parametrize("subject_token", ["none", "shared", "per_subject"])
def test_every_switch_gives_finite_embeddings_and_gradients(position, subject_token):
    net = small(position=position, subject_token=subject_token)
    out = net(torch.randn(4, 5, 90), torch.tensor([1, 2, 3, 99]))
    assert out.shape == (4, 8)
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_every_channel_reaches_the_output_and_the_last_one_too():
    net = small().eval()
    eeg = torch.randn(1, 5, 90, requires_grad=True)
    net(eeg, torch.tensor([1]))[0, 0].backward()
    assert (eeg.grad.abs().sum(dim=2) > 1e-6).all()


def test_an_unknown_subject_takes_the_shared_token_alone():
    net = small(subject_token="per_subject", n_subjects=3).eval()
    eeg = torch.randn(1, 5, 90).expand(4, -1, -1)
    out = net(eeg, torch.tensor([1, 2, 0, 7]))
    assert torch.allclose(out[2], out[3])
    assert not torch.allclose(out[0], out[1])
    alone = net(eeg[:1], torch.tensor([1]))
    torch.testing.assert_close(out[:1], alone, atol=1e-5, rtol=1e-5)


def test_sinusoids_by_hand():
    table = sinusoids(3, 4)
    assert table[0].tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(
        table[2],
        torch.tensor([2.0, 2.0, 0.02, 0.02]).sin() * 0
        + torch.stack(
            [torch.tensor(2.0).sin(), torch.tensor(2.0).cos(), torch.tensor(0.02).sin(), torch.tensor(0.02).cos()]
        ),
    )


def test_attention_equals_its_definition():
    layer = small().layers[0].eval()
    x = torch.randn(2, 5, 90)
    q, k, v = (f(x).unflatten(2, (4, 22)) for f in (layer.query, layer.key, layer.value))
    weight = torch.einsum("bihd,bjhd->bhij", q, k).div(22**0.5).softmax(-1)
    expected = layer.out(torch.einsum("bhij,bjhd->bihd", weight, v).flatten(2))
    torch.testing.assert_close(layer.attend(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"attention_axis": "time"}, "issue 4"),
        ({"attention_axis": "both"}, "attention_axis"),
        ({"position": "sinus"}, "none, sinusoidal, learnable"),
        ({"subject_token": "yes"}, "per_subject"),
    ],
)
def test_wrong_arguments_are_one_sentence(args, words):
    with pytest.raises(ConfigError, match=words):
        small(**args)


def test_short_trials_are_refused():
    with pytest.raises(ConfigError, match="at least 75 samples"):
        ATMS(5, 74, 8)
