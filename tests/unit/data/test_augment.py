import numpy as np
import torch
from scipy.stats import beta, kstest

from eegrecon.data.augment import Augment, drop_channels, mix, mixup_shares, neighbours, shift_in_time


def test_nothing_is_done_by_default():
    assert Augment().is_off
    assert not Augment(noise=0.1).is_off


def test_shift_moves_every_trial_by_its_own_number():
    eeg = torch.arange(2 * 3 * 6.0).view(2, 3, 6)
    moved = shift_in_time(eeg, torch.tensor([2, -1]))
    expected = torch.from_numpy(np.pad(eeg.numpy(), ((0, 0), (0, 0), (2, 2)), mode="edge"))
    torch.testing.assert_close(moved[0], expected[0, :, 0:6])
    torch.testing.assert_close(moved[1], expected[1, :, 3:9])


def test_a_dropped_channel_is_its_mean_and_others_stay():
    eeg, mean = torch.randn(2, 3, 4), torch.tensor([1.0, 2.0, 3.0])
    uniform = torch.tensor([[0.1, 0.9, 0.3], [0.31, 0.29, 0.5]])
    dropped = drop_channels(eeg, uniform, 0.3, mean)
    assert (dropped[0, 0] == 1).all()
    assert (dropped[1, 1] == 2).all()
    kept = uniform >= 0.3
    assert torch.equal(dropped[kept], eeg[kept])


def test_mixing_is_of_pairs_and_keeps_their_sum():
    value, share = torch.randn(5, 2, 3), torch.tensor([0.2, 0.2, 0.7, 0.7, 0.4])
    mixed = mix(value, share)
    torch.testing.assert_close(mixed[0], 0.2 * value[0] + 0.8 * value[1])
    torch.testing.assert_close(mixed[3], 0.7 * value[3] + 0.3 * value[2])
    torch.testing.assert_close(mixed[4], value[4])
    torch.testing.assert_close(mixed[0] + mixed[1], value[0] + value[1])
    assert neighbours(2).tolist() == [1, 0]


def test_shares_follow_the_beta_distribution_and_are_one_a_pair():
    torch.manual_seed(0)
    share = mixup_shares(torch.rand(4000), 0.3)
    assert torch.equal(share[0::2], share[1::2])
    assert kstest(share[0::2].double().numpy(), beta(0.3, 0.3).cdf).pvalue > 0.01
