import math

import pytest
import torch

from eegrecon.callbacks.resume import epoch_seed
from eegrecon.callbacks.retrieval import score_validation
from eegrecon.losses.contrastive import info_nce
from eegrecon.losses.objective import EncoderObjective

PLAIN = EncoderObjective(contrastive=1.0, mse=1.0)


def rows(noise):
    torch.manual_seed(0)
    image = torch.randn(12, 16)
    return {
        "eeg_embeds": image + noise * torch.randn(12, 16),
        "image_embeds": image,
        "image_index": torch.arange(12),
        "concept_index": torch.arange(12) // 3,
        "mse": torch.arange(12.0),
    }


def test_a_perfect_encoder_and_names_that_say_n():
    scores = score_validation(rows(0.0), PLAIN, torch.tensor(5.0))
    assert set(scores) == {"retrieval_top1_4way", "retrieval_top5_4way", "contrastive", "mse"}
    assert scores["retrieval_top1_4way"] == 1
    assert scores["retrieval_top5_4way"] == 1
    assert scores["contrastive"] < 1e-6
    assert scores["mse"] == pytest.approx(5.5)


def test_a_blind_encoder():
    blind = {**rows(0.0), "eeg_embeds": torch.ones(12, 16), "image_embeds": torch.ones(12, 16)}
    scores = score_validation({**blind, "vae_latent": torch.ones(12)}, PLAIN, torch.tensor(2.0))
    assert scores["retrieval_top1_4way"] == pytest.approx(1 / 4)
    assert scores["contrastive"] == pytest.approx(math.log(12))
    assert scores["vae_latent"] == 1


def test_the_contrastive_loss_is_over_the_whole_split():
    noisy = rows(2.0)
    expected = info_nce(noisy["eeg_embeds"], noisy["image_embeds"], torch.tensor(1.0))
    assert score_validation(noisy, PLAIN, torch.tensor(1.0))["contrastive"] == pytest.approx(expected.item())


def test_every_epoch_and_rank_has_its_seed():
    seeds = {epoch_seed(seed, epoch, rank) for seed in (0, 1) for epoch in range(20) for rank in range(4)}
    assert len(seeds) == 160
    assert all(0 <= seed < 2**63 for seed in seeds)
