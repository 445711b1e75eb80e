"""The prior's U-Net: size, seam and the dropped condition."""

import pytest
import torch

from eegrecon.models.priors.unet import PriorUNet


@pytest.fixture
def network():
    torch.manual_seed(0)
    return PriorUNet(6, 5, hidden=[16, 8, 4], time_embed_dim=8, dropout=0.0).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(4, 6, generator=generator)
    return noisy, torch.tensor([0, 10, 500, 999]), torch.randn(4, 5, generator=generator)


def test_published_size():
    # facts/atm.md section 4: measured on the authors' class
    assert sum(p.numel() for p in PriorUNet(1024, 1024).parameters()) == 9_675_648


def test_shape_and_configurable_widths(network, batch):
    assert network(*batch).shape == (4, 6)
    assert PriorUNet(6, 5, hidden=[4, 4], time_embed_dim=8)(*batch).shape == (4, 6)


def test_masked_row_equals_no_condition_exactly(network, batch):
    noisy, timestep, eeg_embeds = batch
    masked = network(noisy, timestep, eeg_embeds, torch.ones(4, dtype=torch.bool))
    assert torch.equal(masked, network(noisy, timestep, None))
    assert torch.equal(masked, network(noisy, timestep, None, torch.zeros(4, dtype=torch.bool)))


def test_mask_is_per_row(network, batch):
    noisy, timestep, eeg_embeds = batch
    mask = torch.tensor([True, False, True, False])
    mixed = network(noisy, timestep, eeg_embeds, mask)
    assert torch.equal(mixed[mask], network(noisy, timestep, None)[mask])
    assert torch.equal(mixed[~mask], network(noisy, timestep, eeg_embeds)[~mask])
    assert not torch.allclose(mixed[~mask], network(noisy, timestep, None)[~mask])


def test_masked_row_may_hold_anything(network, batch):
    noisy, timestep, eeg_embeds = batch
    eeg_embeds[0] = float("nan")
    out = network(noisy, timestep, eeg_embeds, torch.tensor([True, False, False, False]))
    assert torch.equal(out[0], network(noisy, timestep, None)[0])


def test_masked_condition_gets_no_gradient(network, batch):
    noisy, timestep, eeg_embeds = batch
    eeg_embeds.requires_grad_()
    network(noisy, timestep, eeg_embeds, torch.tensor([True, True, False, False])).sum().backward()
    assert eeg_embeds.grad[:2].abs().sum() == 0
    assert (eeg_embeds.grad[2:].abs().sum(dim=1) > 0).all()


def test_rows_do_not_see_each_other(network, batch):
    noisy, timestep, eeg_embeds = batch
    alone = torch.cat([network(noisy[i : i + 1], timestep[i : i + 1], eeg_embeds[i : i + 1]) for i in range(4)])
    assert torch.allclose(network(*batch), alone, atol=1e-6)


def test_timestep_matters(network, batch):
    noisy, timestep, eeg_embeds = batch
    assert not torch.allclose(network(noisy, timestep, eeg_embeds), network(noisy, timestep + 300, eeg_embeds))


@pytest.mark.parametrize("bad", [{"hidden": [8]}, {"hidden": [8, 0]}, {"time_embed_dim": 7}, {"dropout": 1.0}])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(ValueError, match="PriorUNet needs"):
        PriorUNet(6, 5, **bad)
