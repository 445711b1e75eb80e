"""Comparisons of made-up runs whose answers are known."""

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from eegrecon.analysis.comparison import compare, differing, summarise
from eegrecon.analysis.comparison_tables import csv_text, subjects_csv
from eegrecon.analysis.run_scores import find_stages, group_runs, read_scores
from eegrecon.errors import ArtifactError
from tests.builders_scores import N, build_scores, made_ranks

TOP1 = f"test/retrieval_top1_{N}way"


def groups_in(*paths):
    return group_runs([read_scores(stage) for path in paths for stage in find_stages(path)])


def build(root, name, *, subjects=range(1, 7), seeds=(0, 1), strength=1.0, shift=0, **stamp):
    for subject in subjects:
        for seed in seeds:
            ranks = made_ranks(strength, subject, seed + shift)
            build_scores(
                root / name / f"sub-{subject:02d}" / f"seed-{seed}", subject=subject, seed=seed, ranks=ranks, **stamp
            )
    return root / name


def test_numbers_equal_a_plain_mean(tmp_path):
    (group,) = groups_in(build(tmp_path, "a"))
    assert group.protocol.subjects == (1, 2, 3, 4, 5, 6)
    found = summarise(group)
    # seeds averaged, then pictures, then subjects: here all means of equal counts
    hits = np.array([[made_ranks(1.0, s, seed).kway(N).numpy() for seed in (0, 1)] for s in range(1, 7)])
    top1 = found[TOP1]
    assert top1.value == pytest.approx(hits.mean())
    assert list(top1.per_subject.values()) == pytest.approx(hits.mean((1, 2)))
    assert top1.scores.numpy() == pytest.approx(hits.mean(1))
    assert top1.low < top1.value < top1.high
    assert top1.over == "subjects and pictures"
    medians = [np.mean([np.median(made_ranks(1.0, s, seed).rank()) for seed in (0, 1)]) for s in range(1, 7)]
    assert found[f"test/retrieval_median_rank_{N}way"].value == pytest.approx(np.mean(medians))
    assert found[f"test/retrieval_median_rank_{N}way"].low is None
    assert {f"test/retrieval_{name}" for name in ("top1_2way", "top5_10way", f"mrr_{N}way")} <= set(found)


def test_several_queries_of_a_picture_count_once(tmp_path):
    ranks = made_ranks(1.0, 1, 0)
    double = type(ranks)(
        **{
            name: torch.cat([getattr(ranks, name), getattr(ranks, name)[:3]])
            for name in ("image_index", "subject", "better", "ties")
        },
        gallery=N,
    )
    build_scores(tmp_path / "run", ranks=double)
    (group,) = groups_in(tmp_path / "run")
    assert summarise(group)[TOP1].value == pytest.approx(ranks.kway(N).mean().item())


def test_perfect_and_chance(tmp_path):
    (perfect,) = groups_in(build(tmp_path, "perfect", strength=100.0))
    top1 = summarise(perfect)[TOP1]
    # resampling hits alone would say [1, 1]; 20 pictures do not
    assert (top1.value, top1.high, top1.over) == (1.0, 1.0, "pictures")
    assert top1.low == pytest.approx(0.832, abs=1e-3)
    (chance,) = groups_in(build(tmp_path, "chance", strength=0.0))
    found = summarise(chance)
    for name, expected in (
        (TOP1, 1 / N),
        ("test/retrieval_top1_2way", 0.5),
        (f"test/retrieval_mean_rank_{N}way", 10.5),
    ):
        assert found[name].low < expected < found[name].high, name


def test_four_subjects_say_so(tmp_path):
    (group,) = groups_in(build(tmp_path, "few", subjects=range(1, 5)))
    assert summarise(group)[TOP1].over == "pictures"


def test_the_better_comes_first_with_an_exact_test(tmp_path):
    weak, strong = build(tmp_path, "weak", strength=0.5), build(tmp_path, "strong", strength=2.5, shift=50)
    comparison = compare(groups_in(weak, strong))
    assert comparison.main == TOP1
    assert [comparison.groups[i].name.rpartition("/")[2] for i in comparison.ranking()] == ["strong", "weak"]
    assert comparison.differences[0] == {}
    found = comparison.differences[1][TOP1]
    values = [np.array(list(s[TOP1].per_subject.values())) for s in comparison.summaries]
    assert found.value == pytest.approx((values[1] - values[0]).mean())
    assert 0 < found.low < found.value < found.high
    assert found.test.p == found.test.floor == 2 / 2**6
    assert found.test.p == pytest.approx(wilcoxon(values[1] - values[0], method="exact").pvalue)
    # the paired interval is of the differences: of a method with itself it is nothing
    same = compare(groups_in(weak) + groups_in(weak)).differences[1][TOP1]
    assert (same.value, same.low, same.high, same.test.p) == (0, 0, 0, 1)
    lines = csv_text(comparison).splitlines()
    assert len(lines) == 1 + 2 * len(comparison.metrics)
    row = dict(
        zip(lines[0].split(","), next(line for line in lines if f"strong,{TOP1}" in line).split(","), strict=True)
    )
    assert float(row["difference"]) == pytest.approx(found.value, rel=1e-5)
    assert (row["subjects"], row["seeds"], row["p_floor"]) == ("6", "2", "0.03125")
    assert len(subjects_csv(comparison).splitlines()) == 1 + 2 * 6 * len(comparison.metrics)


def test_unlike_protocols_are_named_one_by_one(tmp_path):
    a = build(tmp_path, "a", subjects=(1, 2), seeds=(0,))
    b = build(tmp_path, "b", subjects=(1,), seeds=(0,), repetitions=1, channels=("O1", "Pz"), transductive=True)
    groups = groups_in(a, b)
    texts = [text.replace(str(tmp_path), "R") for text in differing(groups)]
    assert texts == [
        "R/a and R/b differ in repetitions (12 against 1): not ranked.",
        "R/a and R/b differ in channels (3 against 2 (only in the first: Oz, O2; only in the second: Pz)): not ranked.",
        "R/a and R/b differ in transductive (False against True): not ranked.",
        "R/a and R/b differ in subjects (1, 2 against 1): not ranked.",
    ]
    assert differing(groups, ["repetitions", "channels", "transductive", "subjects"]) == []
    # over the subject they share
    assert list(compare(groups).summaries[1][TOP1].per_subject) == [1]
    assert compare(groups).differences[1][TOP1].test.n == 1


def test_protocols_of_one_experiment_are_groups_of_their_own(tmp_path):
    build(tmp_path, "exp", subjects=(1,), seeds=(0,))
    build_scores(tmp_path / "exp" / "all-but-01" / "seed-0", training="leave_one_subject_out")
    for subject in (1, 2):
        build_scores(
            tmp_path / "exp" / "sub-01-02" / "seed-0",
            subject=subject,
            folder=f"evaluate-sub-{subject:02d}",
            training="joint",
        )
    names = {g.name.rpartition("/")[2]: g for g in groups_in(tmp_path / "exp")}
    assert set(names) == {"exp (within_subject)", "exp (leave_one_subject_out)", "exp (joint)"}
    assert names["exp (joint)"].protocol.subjects == (1, 2)


def test_evaluate_is_preferred_to_reconstruct_and_the_unfinished_is_passed_over(tmp_path):
    build_scores(tmp_path / "run")
    build_scores(tmp_path / "run", folder="reconstruct")
    build_scores(tmp_path / "other", folder="reconstruct")
    (tmp_path / "third" / "evaluate").mkdir(parents=True)
    found = [stage.relative_to(tmp_path).as_posix() for stage in find_stages(tmp_path)]
    assert found == ["other/reconstruct", "run/evaluate"]


def test_numbers_of_pictures_are_over_subjects(tmp_path):
    for subject in range(1, 7):
        extra = {"test/ssim": {"value": 0.1 * subject, "ci95": [0, 1], "chance": 0.2}, "test/none": {"value": None}}
        build_scores(tmp_path / "a" / f"sub-{subject:02d}" / "seed-0", subject=subject, extra=extra)
    found = summarise(groups_in(tmp_path / "a")[0])
    assert (found["test/ssim"].value, found["test/ssim"].over) == (pytest.approx(0.35), "subjects")
    half = 2.5706 * np.std(0.1 * np.arange(1, 7), ddof=1) / 6**0.5
    assert found["test/ssim"].high - found["test/ssim"].value == pytest.approx(half, rel=1e-3)
    assert "test/none" not in found


def test_what_cannot_be_compared(tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere does not exist: name a run .* first run `eegrecon evaluate`"):
        find_stages(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="holds no finished evaluate or reconstruct"):
        find_stages(tmp_path)
    one = build_scores(tmp_path / "one" / "sub-01" / "seed-0")
    two = build_scores(tmp_path / "one" / "sub-02" / "seed-0", subject=2, window=(0.0, 0.5))
    with pytest.raises(
        ArtifactError, match=r"unlike protocols \(window: 0 to 1 against 0 to 0.5\): evaluate them alike"
    ):
        group_runs([read_scores(one), read_scores(two)])
    build_scores(tmp_path / "twice" / "sub-01" / "seed-0")
    build_scores(tmp_path / "twice" / "sub-01" / "seed-1", seed=0)
    with pytest.raises(ArtifactError, match=r"are both subject 1, seed 0 of .*twice: name one of them"):
        groups_in(tmp_path / "twice")
    small = build_scores(tmp_path / "small", ranks=made_ranks(1, 1, 0, n=1))
    with pytest.raises(ArtifactError, match="share no retrieval number of one gallery size"):
        compare(groups_in(one.parent, small.parent))
    (one / "metrics.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"metrics.json has 2 bytes, but its manifest says"):
        read_scores(one)


def test_other_pictures_under_one_hash_are_noticed(tmp_path):
    ranks = made_ranks(1, 2, 0)
    moved = type(ranks)(ranks.image_index + 1, ranks.subject, ranks.better, ranks.ties, N)
    build_scores(tmp_path / "a" / "sub-01" / "seed-0")
    build_scores(tmp_path / "a" / "sub-02" / "seed-0", subject=2, ranks=moved)
    with pytest.raises(ArtifactError, match="was scored on other pictures than"):
        summarise(groups_in(tmp_path / "a")[0])
