"""The published networks that ATM is compared with: sizes, exact fast forms, and what sets them apart."""

import pytest
import torch
from torch import nn

from eegrecon.errors import ConfigError
from eegrecon.models.encoders.combined_conv import CombinedConv
from eegrecon.models.encoders.eeg_conformer import EEGConformer
from eegrecon.models.encoders.eeg_project import EEGProject
from eegrecon.models.encoders.eegnet import EEGNetFeatures, EEGNetV4
from eegrecon.models.encoders.enigma import Enigma, SubjectLinear
from eegrecon.models.encoders.mlp import MLP
from eegrecon.models.encoders.nice import NICE, ChannelAttention, ChannelGraphAttention
from eegrecon.models.encoders.shallow_fbcsp import ShallowFBCSPNet


def size(network):
    return sum(p.numel() for p in network.parameters())


def test_sizes_are_those_of_the_published_layers():
    # facts/atm.md, Table 2: TSConv 103,680 and projector 1440 -> 1024 of 2,527,232.
    assert size(NICE(63, 250, 1024)) == 103_680 + 2_527_232
    wide = 63 * 250
    assert size(EEGProject(63, 250, 1024)) == wide * 1024 + 1024 + 1024 * 1024 + 1024 + 2 * 1024
    assert size(MLP(63, 250, 1024, hidden=[32])) == wide * 32 + 32 + 32 * 1024 + 1024
    # Lawhern et al. 2018, Table 2, with F1=8, D=2, F2=16, C=63, kernel 64: convolutions and three batch norms.
    convolutions = 8 * 64 + 16 * 63 + 16 * 16 + 16 * 16
    assert size(EEGNetFeatures(63, 250, filters=8, depth=2, pointwise=16, kernel=64, dropout=0.25)) == (
        convolutions + 2 * (8 + 16 + 16)
    )
    # Schirrmeister et al. 2017: 40 filters of 25 taps with bias, 40 x 40 x 63 without, batch norm, 10 poolings.
    assert size(ShallowFBCSPNet(63, 250, 4)) == 40 * 26 + 40 * 40 * 63 + 80 + (40 * 11 * 4 + 4)


@pytest.mark.parametrize("spatial_bias", [True, False])
def test_the_combined_convolution_equals_one_after_the_other(spatial_bias):
    torch.manual_seed(0)
    conv = CombinedConv(5, 6, 9, spatial_bias=spatial_bias).double()
    eeg = torch.randn(3, 5, 40, dtype=torch.float64)
    torch.testing.assert_close(conv(eeg), conv.plain(eeg))
    grads = []
    for form in (conv, conv.plain):
        conv.zero_grad()
        form(eeg).sin().sum().backward()
        grads.append([p.grad.clone() for p in conv.parameters()])
    torch.testing.assert_close(*grads)


def test_channel_attention_equals_its_definition():
    torch.manual_seed(0)
    layer = ChannelAttention(8)
    x = torch.randn(2, 5, 8)
    y = layer.norm(x)
    weight = (layer.query(y) @ layer.key(y).transpose(1, 2) / 8**0.5).softmax(-1)
    torch.testing.assert_close(layer(x), weight @ layer.value(y), atol=1e-5, rtol=1e-5)


def test_graph_attention_equals_its_definition_pair_by_pair():
    torch.manual_seed(0)
    layer = ChannelGraphAttention(6)
    x = torch.randn(1, 4, 6)
    h = x[0] @ layer.weight.weight.T
    scoring = torch.cat([layer.receiver, layer.sender])
    for i in range(4):
        score = torch.stack([nn.functional.leaky_relu(scoring @ torch.cat([h[i], h[j]]), 0.2) for j in range(4)])
        expected = (score.softmax(0)[:, None] * h).sum(0) + layer.bias
        torch.testing.assert_close(layer(x)[0, i], expected, atol=1e-5, rtol=1e-5)


def test_spatial_modules_are_added_not_put_in_place():
    torch.manual_seed(0)
    network = NICE(5, 90, 8, spatial="sa").eval()
    eeg, subject = torch.randn(2, 5, 90), torch.ones(2, dtype=torch.long)
    with torch.no_grad():
        for p in network.spatial.value.parameters():
            p.zero_()
    torch.testing.assert_close(network(eeg, subject), network.head(network.conv(eeg)))


def test_shallow_net_is_the_logarithm_of_band_power():
    torch.manual_seed(0)
    network = ShallowFBCSPNet(4, 120, 3).eval()
    eeg = torch.randn(2, 4, 120)
    power = network.norm(network.conv.plain(eeg)).square().unfold(2, 75, 15).mean(-1).log()
    expected = network.head(power.flatten(1))
    torch.testing.assert_close(network(eeg, torch.ones(2, dtype=torch.long)), expected, atol=1e-5, rtol=1e-5)


def test_eegnet_keeps_spatial_filters_short_without_touching_the_weights():
    torch.manual_seed(0)
    network = EEGNetV4(5, 64, 3).eval()
    eeg, subject = torch.randn(2, 5, 64), torch.ones(2, dtype=torch.long)
    with torch.no_grad():
        network.features.spatial.weight.mul_(100)
        long = network(eeg, subject)
        norms = network.features.spatial.weight.flatten(1).norm(dim=1)
        assert (norms > 1).all()
        network.features.spatial.weight.div_(norms[:, None, None, None])
        torch.testing.assert_close(network(eeg, subject), long, atol=1e-5, rtol=1e-5)


def test_conformer_sees_one_token_a_pooling_window():
    network = EEGConformer(63, 250, 16)
    assert network.head[0].in_features == 40 * 11
    assert len(network.transformer.layers) == 6


def test_subject_layers_start_equal_and_are_each_subjects_own():
    torch.manual_seed(0)
    layer = SubjectLinear(4, 3)
    x = torch.randn(5, 4)
    subject = torch.tensor([1, 2, 3, 0, 9])
    torch.testing.assert_close(layer(x, subject), x)
    with torch.no_grad():
        layer.weight[2].mul_(2)
        layer.bias[0].add_(1)
    expected = x.clone()
    expected[1] *= 2
    expected[3:] += 1
    torch.testing.assert_close(layer(x, subject), expected)
    layer(x[:2], subject[:2]).sum().backward()
    assert layer.weight.grad[3].abs().sum() == 0
    assert layer.weight.grad[1].abs().sum() > 0


def test_an_enigma_with_thirty_subjects_is_compact():
    assert 2e6 < size(Enigma(63, 250, 1024, n_subjects=30)) < 4e6


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: NICE(5, 90, 8, spatial="xa"), "none, sa, ga"),
        (lambda: Enigma(5, 90, 8, n_subjects=0), "n_subjects must be at least 1"),
        (lambda: MLP(5, 90, 8, hidden=[0]), "positive widths"),
        (lambda: EEGConformer(5, 110, 8, heads=7), "does not divide"),
        (lambda: NICE(5, 70, 8), "Encoder nice needs trials of at least 75 samples"),
        (lambda: Enigma(5, 70, 8), "Encoder enigma needs trials of at least 75 samples"),
        (lambda: EEGNetV4(5, 20, 8), "Encoder eegnet needs trials of at least 32 samples"),
    ],
)
def test_wrong_arguments_are_one_sentence(build, words):
    with pytest.raises(ConfigError, match=words):
        build()
