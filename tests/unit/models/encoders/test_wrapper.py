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


class Tells(nn.Module):
    """An encoder that gives back which subject it was told."""

    def forward(self, eeg, subject):
        return subject[:, None].float()


def aligned(**options):
    return AlignedEncoder(Tells(), None, torch.zeros(2), torch.ones(2), **options)


def test_an_unknown_subject_is_nobody():
    subject = torch.tensor([0, 1, 2, 3, 9, 10])
    told = aligned(known_subjects=[9, 2, 3])(torch.zeros(6, 2, 3), subject)
    assert told.flatten().tolist() == [0, 0, 2, 3, 9, 0]
    told = aligned()(torch.zeros(6, 2, 3), subject)  # nobody said who is known
    assert told.flatten().tolist() == subject.tolist()
    assert aligned(known_subjects=[9, 2]).state_dict()["known_subjects"].tolist() == [2, 9]
    with pytest.raises(ValueError, match="from 1"):
        aligned(known_subjects=[0, 1])


def test_scale_and_bias_start_where_they_are_told():
    net = aligned(logit_scale=1.5, logit_bias=-10.0, learn_logit_scale=False)
    assert (net.logit_scale.item(), net.logit_bias.item()) == (1.5, -10.0)
    assert not any(value.requires_grad for value in net.parameters())
    assert "logit_bias" not in aligned().state_dict()


def test_pictures_go_through_the_projection_if_there_is_one():
    images = torch.randn(4, 3)
    assert aligned().project_images(images) is images
    projection = nn.Linear(3, 2)
    torch.testing.assert_close(aligned(image_projection=projection).project_images(images), projection(images))
