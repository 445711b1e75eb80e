"""ATM-S: shapes, the exact folded convolution, the switches."""

import copy
import json
from pathlib import Path

import pytest
import torch

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.atm_attention import TimeLayer, sinusoids
from eegrecon.models.encoders.atm_e import ATME
from eegrecon.models.encoders.atm_s import ATMS
from eegrecon.models.encoders.temporal_spatial import TSConv
from tests.official_atm import OfficialATMS


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
        ({"attention_axis": "time"}, "subject_token is shared .set it to none."),
        ({"attention_axis": "time", "subject_token": "none", "heads": 4}, "heads is 4"),
        ({"token_slice": "official", "subject_token": "none"}, "subject_token is none"),
        ({"token_slice": "first"}, "all, official"),
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


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_official_parameters_all_accounted_for():
    # facts/atm.md 2.1 and 2.2: the count of today's main, and the paper's three rows.
    official = OfficialATMS()
    assert count(official) == 3_202_413
    dead = sum(p.numel() for n, p in official.named_parameters() if n.startswith("subject_wise_linear"))
    assert count(official) - dead == 3_076_913
    paper = ATMS(63, 250, 1024, attention_axis="time", subject_token="none")
    assert (2 * count(paper.time), count(paper.conv), count(paper.head)) == (553_078, 103_680, 2_527_232)


def test_official_keys_and_shapes_are_those_of_the_released_checkpoints():
    facts = Path(__file__).parents[4].parent / "shared" / "facts" / "atm_state_dict.json"
    if not facts.is_file():
        pytest.skip("the facts are not part of the repository")
    published = json.loads(facts.read_text())["encoder (main, Generation/ATMS_reconstruction.py)"]
    assert {name: list(value.shape) for name, value in OfficialATMS().state_dict().items()} == published


def copied(official, ours):
    """The official weights in our module, by hand."""
    o, n = official.state_dict(), ours.state_dict()
    attention, layer = "encoder.encoder.attn_layers.0.attention.", "encoder.encoder.attn_layers.0."
    names = {"tokens.value": "encoder.enc_embedding.value_embedding", "norm": "encoder.encoder.norm"}
    names |= {f"layers.0.{k}": f"{attention}{k}_projection" for k in ("query", "key", "value", "out")}
    names |= {f"layers.0.{k}": f"{layer}{v}" for k, v in {"expand": "conv1", "contract": "conv2"}.items()}
    names |= {f"layers.0.{k}": f"{layer}{k}" for k in ("norm1", "norm2")}
    names |= {"conv.projection": "enc_eeg.0.projection.0", "head.inward": "proj_eeg.0"}
    names |= {"head.residual": "proj_eeg.1.fn.1", "head.norm": "proj_eeg.2"}
    for mine, theirs in names.items():
        for kind in ("weight", "bias"):
            n[f"{mine}.{kind}"] = o[f"{theirs}.{kind}"].view(n[f"{mine}.{kind}"].shape)
    for name in list(n):
        if name.startswith("conv.tsconv"):
            n[name] = o[name.replace("conv.", "enc_eeg.0.", 1)]
    # Official features have positions outermost, ours filters.
    n["head.inward.weight"] = n["head.inward.weight"].unflatten(1, (-1, 40)).transpose(1, 2).flatten(1)
    table = "encoder.enc_embedding.subject_embedding."
    n["tokens.subject.weight"] = torch.cat([o[f"{table}shared_embedding"], o[f"{table}subject_embedding.weight"][1:]])
    ours.load_state_dict(n, strict=True)
    return ours


@pytest.mark.parametrize("subject", [1, 9, 10])
def test_equals_the_official_network_forward_and_backward(subject):
    torch.manual_seed(0)
    official = OfficialATMS().eval()
    with torch.no_grad():
        for module in official.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
    args = {"token_slice": "official", "position": "sinusoidal", "subject_token": "per_subject", "n_subjects": 9}
    ours = copied(official, ATMS(63, 250, 1024, **args)).eval()
    eeg, ids = torch.randn(3, 63, 250), torch.full((3,), subject)
    ends = []
    for network in (official, ours):
        x = eeg.clone().requires_grad_()
        out = network(x, ids)
        (out * torch.linspace(-1, 1, 1024)).sum().backward()
        ends.append((out, x.grad))
    torch.testing.assert_close(ends[0][0], ends[1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ends[0][1], ends[1][1], atol=1e-4, rtol=1e-4)


def test_the_official_slice_loses_the_last_channel():
    net = small(token_slice="official").eval()
    eeg = torch.randn(1, 5, 90)
    seen = net.attend(eeg, torch.tensor([1]))
    everything = small().eval().attend(eeg, torch.tensor([1]))
    torch.testing.assert_close(seen[:, 1:], everything[:, :-1])


def test_attention_over_time_mixes_samples_and_no_channel_twice():
    torch.manual_seed(0)
    layer = TimeLayer(5, 90, "none", 1, 2048, 0.1).eval()
    eeg = torch.randn(2, 5, 90)
    expected = torch.stack([layer.layers[0](one.T[None])[0].T for one in eeg])
    torch.testing.assert_close(layer(eeg), expected, atol=1e-5, rtol=1e-5)
    shuffled = torch.randperm(90)
    # Without positions, attention does not know the order of its tokens.
    torch.testing.assert_close(layer(eeg[..., shuffled]), layer(eeg)[..., shuffled], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["none", "sinusoidal", "learnable"])
@pytest.mark.parametrize("build", [ATMS, ATME])
def test_attention_over_time_gives_embeddings_and_gradients(build, position):
    torch.manual_seed(0)
    net = build(5, 90, 8, attention_axis="time", subject_token="none", position=position, subject_linear=True)
    net(torch.randn(4, 5, 90), torch.ones(4, dtype=torch.long)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_atm_e_over_channels_takes_subject_tokens():
    net = ATME(5, 90, 8, attention_axis="channel", subject_token="per_subject", subject_linear=False).eval()
    eeg = torch.randn(1, 5, 90).expand(2, -1, -1)
    out = net(eeg, torch.tensor([1, 2]))
    assert not torch.allclose(out[0], out[1])
