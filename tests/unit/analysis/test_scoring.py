import numpy as np
import pytest
import torch
from PIL import Image

from eegrecon.analysis.scoring import (
    score_embeds,
    score_pictures,
    summary_rows,
    with_permuted_labels,
)
from eegrecon.metrics.features import picture_tensor
from eegrecon.metrics.functional.identification import null_interval


def pictures(n, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(array).resize((24, 24), Image.Resampling.BICUBIC) for array in coarse]


def network(batch):
    return picture_tensor(batch, 6).flatten(1)


SEEN = pictures(60, 0)


def score(decoded):
    return score_pictures(decoded, SEEN, [SEEN], networks={"judge": network}, pixel_size=24, seed=0)


def test_perfect_pictures_score_one_and_shuffled_ones_chance():
    metrics = score([SEEN]).metrics
    for name in ("test/two_way_judge", "test/pixcorr", "test/ssim"):
        assert metrics[name]["value"] == pytest.approx(1)
        assert metrics[f"{name}_ceiling"]["value"] == pytest.approx(1)
    shuffled = metrics["test/two_way_judge_shuffled"]
    low, high = shuffled["null99"]
    assert low <= shuffled["value"] <= high
    assert abs(metrics["test/pixcorr_shuffled"]["value"]) < 0.1
    assert metrics["test/pixcorr"]["chance"] == metrics["test/pixcorr_shuffled"]["value"]


def test_unrelated_pictures_score_chance():
    metrics = score([pictures(60, 1)]).metrics
    low, high = null_interval(60)
    assert low <= metrics["test/two_way_judge"]["value"] <= high
    assert metrics["test/two_way_judge"]["ci95"][0] < 0.5 < metrics["test/two_way_judge"]["ci95"][1]


def test_draws_are_averaged():
    other = pictures(60, 1)
    mean = score([SEEN, other]).metrics["test/pixcorr"]["value"]
    assert mean == pytest.approx((1 + score([other]).metrics["test/pixcorr"]["value"]) / 2)


def test_per_picture_scores_keep_the_order():
    decoded = [*SEEN[:30], *pictures(30, 2)]
    judged = score([decoded]).per_picture["test/two_way_judge"]
    assert judged[:30].tolist() == [1.0] * 30
    assert judged[30:].mean() < 0.9


def test_embeddings():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(50, 16, generator=generator)
    noise = torch.randn(50, 16, generator=generator)
    metrics = score_embeds(true * 3, true, seed=0, ridge_embeds=noise, pred_image_embeds=(true * 2)[:, None])
    assert metrics["test/retrieval_top1_50way"]["value"] == 1
    assert metrics["test/retrieval_top5_50way"]["chance"] == pytest.approx(0.1)
    assert metrics["test/retrieval_top5_50way_ridge"]["value"] < 0.35
    assert metrics["test/prior_cosine"]["value"] == pytest.approx(1)
    assert abs(metrics["test/prior_cosine_shuffled"]["value"]) < 0.2
    assert set(score_embeds(true, true, seed=0)) == {"test/retrieval_top1_50way", "test/retrieval_top5_50way"}


def test_permuted_labels_and_the_table():
    metrics = score([SEEN]).metrics
    permuted = score([pictures(60, 3)]).metrics
    both = with_permuted_labels(metrics, permuted)
    added = sorted(set(both) - set(metrics))
    assert added == [f"test/{name}_permuted_labels" for name in ("pixcorr", "ssim", "two_way_judge")]
    rows = summary_rows(both)
    assert [row["metric"] for row in rows] == ["test/two_way_judge", "test/pixcorr", "test/ssim"]
    assert rows[0]["ceiling"] == "1.000"
    assert rows[0]["permuted labels"] == f"{permuted['test/two_way_judge']['value']:.3f}"
    assert rows[0]["ridge"] == "–"
    assert rows[0]["decoded [95 %]"].startswith("1.000 [0.9")
