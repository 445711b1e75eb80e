"""EEGNet's linear part, computed as one convolution, equals the published order of its layers."""

import copy

import pytest
import torch

from eegrecon.models.encoders.eegnet import EEGNetFeatures

OPTIONS = {
    "eegnet": {"filters": 8, "depth": 2, "pointwise": 16, "kernel": 64},
    "atm_e": {"filters": 8, "depth": 20, "pointwise": 160, "kernel": 4},
    "odd kernel": {"filters": 3, "depth": 2, "pointwise": 5, "kernel": 15},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_folded_equals_step_by_step(options, training):
    torch.manual_seed(1)
    fast = EEGNetFeatures(7, 90, dropout=0.0, **options).double().train(training)
    with torch.no_grad():  # not the initial 0 and 1; spatial filters on both sides of the constraint
        fast.norm1.weight.uniform_(0.5, 2)
        fast.norm1.bias.normal_()
        fast.norm1.running_mean.normal_()
        fast.norm1.running_var.uniform_(0.5, 2)
        fast.spatial.weight[::2].mul_(5)
    plain = copy.deepcopy(fast)
    x = 3 * torch.randn(6, 7, 90, dtype=torch.float64) + 1
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = fast(inputs[0]), plain.plain(inputs[1])
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=1e-10)
    pull = torch.randn_like(outputs[0])
    for output in outputs:
        (output * pull).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-10, rtol=1e-10)
    for (name, one), two in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-10, rtol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
    for one, two in zip(fast.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-10)
