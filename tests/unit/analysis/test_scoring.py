import numpy as np
import pytest
import torch
from PIL import Image

from eegrecon.analysis.scoring import (
    median_interval,
    picture_ranks,
    prior_scores,
    rank_metrics,
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


def ranks_of(eeg_embeds, image_embeds, **ids):
    n = len(eeg_embeds)
    ids = {"image_index": torch.arange(100, 100 + n), "subject": torch.ones(n, dtype=torch.long)} | ids
    return picture_ranks(eeg_embeds, image_embeds, **ids)


def random(n, dim, seed):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_perfect_embeddings_and_noise():
    true, noise = random(50, 16, 0), random(50, 16, 1)
    metrics = rank_metrics({"": ranks_of(true * 3, true), "_ridge": ranks_of(noise, true)})
    for k_way in (2, 4, 10, 50):
        assert metrics[f"test/retrieval_top1_{k_way}way"]["value"] == pytest.approx(1)
        low, high = metrics[f"test/retrieval_top1_{k_way}way_ridge"]["ci95"]
        assert low < 1 / k_way < high
        assert metrics[f"test/retrieval_top1_{k_way}way_ridge"]["chance"] == 1 / k_way
    assert metrics["test/retrieval_top5_50way"]["chance"] == pytest.approx(0.1)
    assert metrics["test/retrieval_top5_50way_ridge"]["value"] < 0.35
    for name, best in (("mrr", 1), ("mean_rank", 1), ("median_rank", 1)):
        assert metrics[f"test/retrieval_{name}_50way"]["value"] == best
    assert metrics["test/retrieval_mean_rank_50way_ridge"]["value"] == pytest.approx(25.5, abs=6)
    assert metrics["test/retrieval_mean_rank_50way"]["chance"] == 25.5
    assert metrics["test/retrieval_mrr_50way"]["chance"] == pytest.approx(sum(1 / i for i in range(1, 51)) / 50)
    # top-5 of so few that chance is all there is would say nothing
    names = {name for name in metrics if "top5" in name and not name.endswith("_ridge")}
    assert names == {"test/retrieval_top5_10way", "test/retrieval_top5_50way"}


def test_numbers_equal_those_of_a_loop_over_the_gallery():
    """The same figures by sorting, without the package's counting."""
    eeg, true = random(30, 4, 2), random(30, 4, 3)
    metrics = rank_metrics({"": ranks_of(eeg, true)})
    cosine = torch.nn.functional.cosine_similarity(eeg[:, None].double(), true[None].double(), dim=-1)
    places = [sorted(row.tolist(), reverse=True).index(row[i].item()) + 1 for i, row in enumerate(cosine)]
    want = {
        "mean_rank_30way": np.mean(places),
        "median_rank_30way": np.median(places),
        "mrr_30way": np.mean([1 / place for place in places]),
        "top1_30way": np.mean([place == 1 for place in places]),
        "top5_30way": np.mean([place <= 5 for place in places]),
        "top1_2way": np.mean([(30 - place) / 29 for place in places]),
    }
    for name, value in want.items():
        assert metrics[f"test/retrieval_{name}"]["value"] == pytest.approx(value), name
        low, high = metrics[f"test/retrieval_{name}"]["ci95"]
        assert low <= value <= high


def test_embeddings_without_information_score_chance():
    metrics = rank_metrics({"": ranks_of(torch.ones(40, 8), torch.ones(40, 8))})
    for name, entry in metrics.items():
        assert entry["value"] == pytest.approx(entry["chance"]), name


def test_rows_of_one_picture_share_a_gallery_entry():
    true = random(20, 8, 0)
    index = torch.arange(20).repeat(2).flip(0)  # two subjects, pictures in any order
    ranks = ranks_of(true[index], true[index], image_index=index, subject=torch.arange(40) // 20 + 1)
    assert ranks.gallery == 20
    assert ranks.better.tolist() == [0] * 40
    swapped = ranks_of(true[index].roll(1, 0), true[index], image_index=index, subject=index)
    assert swapped.better.float().mean() > 5


def test_median_interval_covers_skewed_data():
    values = np.random.default_rng(0).exponential(size=(2000, 30))
    bounds = [median_interval(torch.from_numpy(row)) for row in values]
    covered = np.mean([low <= np.log(2) <= high for low, high in bounds])
    assert 0.945 <= covered <= 0.98


def test_prior_cosines():
    true = random(50, 16, 0)
    scores = prior_scores((true * 2)[:, None], true, seed=0)
    torch.testing.assert_close(scores.per_picture["test/prior_cosine"], torch.ones(50).double())
    metrics = scores.metrics
    assert metrics["test/prior_cosine"]["value"] == pytest.approx(1)
    assert abs(metrics["test/prior_cosine_shuffled"]["value"]) < 0.2


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
