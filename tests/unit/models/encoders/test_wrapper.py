import math

import pytest
import torch
from torch import nn

from eegrecon.models.encoders.ridge import Ridge
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.models.latent_head import LatentHead


def test_normalises_each_channel_and_holds_everything_in_one_state():
    net = AlignedEncoder(
        Ridge(2, 3, 4), LatentHead(4, (1, 2, 2)), torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5])
    ).eval()
    eeg = torch.randn(5, 2, 3, dtype=torch.float64).half()
    by_hand = torch.stack([(eeg[:, 0].float() - 1) / 2, (eeg[:, 1].float() + 2) / 0.5], dim=1)
    subject = torch.ones(5, dtype=torch.long)
    torch.testing.assert_close(net(eeg, subject), net.encoder(by_hand, subject))
    assert net.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    prefixes = {name.split(".")[0] for name in net.state_dict()}
    assert prefixes == {"encoder", "latent_head", "channel_mean", "channel_std", "logit_scale"}
    assert net.latent_head(net(eeg, subject)).shape == (5, 1, 2, 2)


def test_a_constant_channel_is_named():
    with pytest.raises(ValueError, match=r"channels \[1\]"):
        AlignedEncoder(nn.Identity(), None, torch.zeros(2), torch.tensor([1.0, 0.0]))
