import torch

from eegrecon.data.augment import Augment
from eegrecon.losses.contrastive import same_image
from eegrecon.modules.augmentation import augmented
from eegrecon.modules.distributed import uniform_rows

MEAN, STD = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])


def batch(b=4):
    torch.manual_seed(0)
    index = torch.arange(b)
    targets = {"image": torch.randn(b, 3), "vae_latent": torch.randn(b, 1, 2, 2)}
    return {"eeg": torch.randn(b, 2, 5), "image_index": index, "concept_index": index // 2, "targets": targets}


def draws(purpose, shape=(), *, normal=False):
    return uniform_rows(4, torch.Generator().manual_seed(purpose), shape, normal=normal)


def test_off_changes_nothing():
    before = batch()
    after = augmented(before, Augment(), MEAN, STD, draws)
    assert torch.equal(after["eeg"], before["eeg"])
    assert after["targets"] is before["targets"]


def test_noise_has_each_channels_own_size():
    before = batch()
    noise = augmented(before, Augment(noise=0.1), MEAN, STD, draws)["eeg"] - before["eeg"]
    many = [draws(seed, (2, 5), normal=True) for seed in range(400)]
    assert noise.shape == before["eeg"].shape
    assert 0.9 < torch.stack(many).std() < 1.1
    # The same numbers, scaled by 0.1 of each channel's spread.
    torch.testing.assert_close(noise[:, 0] / 0.2, torch.stack([noise[:, 0] / 0.2]).squeeze(0))
    ratio = noise[:, 0].std() / noise[:, 1].std()
    assert 2 < ratio < 8  # 4 on average


def test_mixup_mixes_targets_alike_and_tells_both_pictures():
    before = batch()
    after = augmented(before, Augment(mixup=0.5), MEAN, STD, draws)
    for name in ("image", "vae_latent"):
        one, other = before["targets"][name][0].flatten(), before["targets"][name][1].flatten()
        mixed = after["targets"][name][0].flatten()
        share = ((mixed - other) @ (one - other)) / (one - other).square().sum()
        torch.testing.assert_close(mixed, share * one + (1 - share) * other)
        eeg = share * before["eeg"][0] + (1 - share) * before["eeg"][1]
        torch.testing.assert_close(after["eeg"][0], eeg)
    assert after["image_index"].tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    shared = same_image(after["image_index"])
    assert shared.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2


def test_shifts_are_within_the_bound_and_reach_it():
    before = batch()
    before["eeg"] = torch.arange(5.0).expand(4, 2, 5)
    seen = set()
    for seed in range(60):
        rows = augmented(before, Augment(time_shift=2), MEAN, STD, lambda p, *a, s=seed, **k: draws(s + 1, *a, **k))[
            "eeg"
        ]
        seen |= {int(row[0, 2]) - 2 for row in rows}
    assert seen == {-2, -1, 0, 1, 2}
