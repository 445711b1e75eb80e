"""Scaling around a low-level network."""

import pytest
import torch
from torch import nn

from eegrecon.models.low_level.wrapper import LowLevelDecoder

MEAN, STD = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5])
LATENT_MEAN, LATENT_STD = torch.arange(8.0).view(2, 2, 2), torch.tensor([3.0, 0.25]).view(2, 1, 1)


class Probe(nn.Module):
    """Remembers what it saw and answers with ones."""

    def forward(self, eeg, subject):
        self.seen = eeg, subject
        return torch.ones(len(eeg), 2, 2, 2)


def decoder(standardise=True, **changed):
    given = {"channel_mean": MEAN, "channel_std": STD, "latent_mean": LATENT_MEAN, "latent_std": LATENT_STD}
    return LowLevelDecoder(Probe(), **{**given, **changed}, known_subjects=[3, 1], standardise=standardise)


def test_eeg_is_standardised_and_strangers_are_zero():
    network = decoder()
    eeg = torch.randn(4, 2, 5)
    network(eeg, torch.tensor([1, 2, 3, 0]))
    seen, subject = network.network.seen
    torch.testing.assert_close(seen, torch.stack([(eeg[:, 0] - 1) / 2, (eeg[:, 1] + 2) / 0.5], dim=1))
    assert subject.tolist() == [1, 0, 3, 0]


def test_latents_come_back_in_the_stores_scale():
    eeg, subject = torch.zeros(1, 2, 5), torch.tensor([1])
    wanted = torch.stack([LATENT_MEAN[0] + 3, LATENT_MEAN[1] + 0.25])[None]
    torch.testing.assert_close(decoder()(eeg, subject), wanted)
    torch.testing.assert_close(decoder(standardise=False)(eeg, subject), torch.ones(1, 2, 2, 2))


@pytest.mark.parametrize("standardise", [True, False])
def test_the_gain_stretches_around_the_mean_latent(standardise):
    network = decoder(standardise)
    eeg, subject = torch.zeros(1, 2, 5), torch.tensor([1])
    plain = network(eeg, subject)
    network.gain.copy_(torch.tensor([2.0, 5.0]).view(2, 1, 1))
    torch.testing.assert_close(network(eeg, subject) - LATENT_MEAN, (plain - LATENT_MEAN) * network.gain)


@pytest.mark.parametrize("name", ["channel_std", "latent_std"])
def test_constant_channels_are_refused(name):
    bad = {"channel_std": torch.tensor([1.0, 0.0]), "latent_std": torch.tensor([1.0, 0.0]).view(2, 1, 1)}[name]
    with pytest.raises(ValueError, match=rf"{name} must be positive, but channels \[1\]"):
        decoder(**{name: bad})
