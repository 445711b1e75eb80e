import pytest
import torch

from eegrecon.analysis.ranks import concept_query_ranks, load_ranks, query_ranks, save_ranks
from eegrecon.errors import ArtifactError
from eegrecon.metrics.functional.retrieval import concept_retrieval, retrieval_kway


def some_ranks():
    # rounded, so that entries tie
    similarity = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).mul(2).round()
    target = torch.arange(40) % 12
    return similarity, target, query_ranks(similarity, target, torch.arange(40) + 7, torch.ones(40))


def test_everything_comes_from_the_counts():
    similarity, target, ranks = some_ranks()
    assert ranks.ties.any()
    for k_way in (2, 5, 12):
        for k in (1, 5):
            torch.testing.assert_close(ranks.kway(k_way, k), retrieval_kway(similarity, target, k_way, k))
    # an independent oracle: every tie broken at random, often
    generator = torch.Generator().manual_seed(1)
    noise = 0.01 * torch.rand(2000, *similarity.shape, generator=generator)
    place = (
        1 + (similarity + noise > (similarity + noise).gather(2, target.expand(2000, 40)[..., None])).sum(2).double()
    )
    assert (ranks.rank() - place.mean(0)).abs().max() < 0.15
    assert (ranks.reciprocal_rank() - (1 / place).mean(0)).abs().max() < 0.03


def test_a_file_gives_the_same_ranks(tmp_path):
    ranks = some_ranks()[2]
    save_ranks(tmp_path / "ranks.safetensors", ranks)
    again = load_ranks(tmp_path / "ranks.safetensors")
    assert again.gallery == 12
    for name in ("image_index", "subject", "better", "ties"):
        assert getattr(again, name).tolist() == getattr(ranks, name).tolist()


def test_what_cannot_be_ranked_or_read(tmp_path):
    with pytest.raises(ValueError, match="the embeddings have diverged"):
        query_ranks(torch.full((2, 2), torch.nan), torch.arange(2), torch.arange(2), torch.ones(2))
    (tmp_path / "ranks.safetensors").write_bytes(b"x")
    for name in ("ranks.safetensors", "none.safetensors"):
        with pytest.raises(ArtifactError, match=rf"{name} cannot be read .* run `eegrecon evaluate` again"):
            load_ranks(tmp_path / name)


def test_validation_has_ranks_too():
    generator = torch.Generator().manual_seed(2)
    concept = torch.arange(8).repeat_interleave(3)
    image = torch.randn(24, 5, generator=generator)
    eeg = image + torch.randn(24, 5, generator=generator)
    order = torch.randperm(24, generator=generator)
    rows = (eeg[order], image[order], order + 50, concept[order])
    ranks = concept_query_ranks(*rows, torch.full((24,), 2))
    scores = concept_retrieval(*rows)
    assert ranks.gallery == scores.n_way == 8
    assert sorted(ranks.image_index.tolist()) == list(range(50, 74))
    assert ranks.kway(8).mean().item() == pytest.approx(scores.top1)
    assert ranks.kway(8, 5).mean().item() == pytest.approx(scores.top5)
    assert ranks.kway_drawn(2, draws=4000).mean().item() == pytest.approx(ranks.kway(2).mean().item(), abs=0.01)
