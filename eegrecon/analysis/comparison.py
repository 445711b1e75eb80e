"""Methods against each other: every number with a crossed interval, per subject, and paired against the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from eegrecon.analysis.protocol import unlike
from eegrecon.analysis.ranks import QueryRanks
from eegrecon.analysis.run_scores import Group, RunScores
from eegrecon.analysis.scoring import K_WAY, TASKS
from eegrecon.errors import ArtifactError
from eegrecon.metrics.functional.identification import clopper_pearson, mean_interval
from eegrecon.metrics.functional.intervals import FEWEST_SUBJECTS, crossed_bootstrap
from eegrecon.metrics.functional.paired import PairedTest, paired_wilcoxon

SHARE = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Summary:
    """One number of one group.

    Attributes:
        value: Mean over subjects (each the mean over seeds and pictures).
        low: Lower bound of the 95 % interval, None where there is none.
        high: Upper bound.
        over: What the interval speaks about: `subjects and pictures`, `pictures`, `subjects` or, with none, "".
        per_subject: Subject to its value.
        scores: (n_subjects, n_pictures) means over seeds, subjects and pictures in order; None where only each
            subject's number is known.
        pictures: (n_pictures,) image_index of the columns, None likewise.
    """

    value: float
    low: float | None
    high: float | None
    over: str
    per_subject: Mapping[int, float]
    scores: Tensor | None = None
    pictures: Tensor | None = None


@dataclass(frozen=True)
class Difference:
    """A group minus the first group, over the subjects that both have.

    Attributes:
        value: Difference of the means.
        low: Lower bound of its 95 % interval (crossed bootstrap of the differences), None where there is none.
        high: Upper bound.
        over: What the interval speaks about.
        test: Wilcoxon signed-rank test over subjects, None when no subject is shared.
    """

    value: float
    low: float | None
    high: float | None
    over: str
    test: PairedTest | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Groups side by side.

    Attributes:
        groups: In the order they were named; the first is the reference.
        main: The metric that ranks.
        metrics: Names that all groups have.
        summaries: Group by group, metric to summary.
        differences: Group by group, metric to the difference from the first; empty for the first.
    """

    groups: Sequence[Group]
    main: str
    metrics: Sequence[str]
    summaries: Sequence[Mapping[str, Summary]]
    differences: Sequence[Mapping[str, Difference]]

    def ranking(self) -> list[int]:
        """Places of the groups, the best of `main` first."""
        return sorted(range(len(self.groups)), key=lambda i: -self.summaries[i][self.main].value)


def differing(groups: Sequence[Group], allowed: Sequence[str] = ()) -> list[str]:
    """Why groups must not be ranked: one sentence a difference from the first, empty when they are alike."""
    first, sentences = groups[0], []
    for group in groups[1:]:
        found = unlike(first.protocol, group.protocol, allowed)
        who = [", ".join(map(str, g.protocol.subjects)) for g in (first, group)]
        if who[0] != who[1] and "subjects" not in allowed:
            found.append(f"subjects: {who[0]} against {who[1]}")
        for text in found:
            name, _, values = text.partition(": ")
            sentences.append(f"{first.name} and {group.name} differ in {name} ({values}): not ranked.")
    return sentences


def compare(groups: Sequence[Group], *, draws: int = 2000, seed: int = 0) -> Comparison:
    """Summarise every number that all groups have, and compare each group with the first.

    Args:
        groups: At least one; whether they may be compared is asked of `differing`.
        draws: Resamples of the crossed bootstrap.
        seed: Of the resamples.

    Raises:
        ArtifactError: Subjects of a group were tested with different pictures, or the groups share no retrieval number.
    """
    summaries = [summarise(group, draws=draws, seed=seed) for group in groups]
    names = [name for name in summaries[0] if all(name in found for found in summaries)]
    top1 = [name for name in names if "/retrieval_top1_" in name and name.endswith("way")]
    if not top1:
        raise ArtifactError(
            f"{' and '.join(group.name for group in groups)} share no retrieval number of one gallery size, so nothing "
            "ranks them: evaluate them in galleries of one size."
        )
    first = summaries[0]
    differences: list[dict[str, Difference]] = [{}]
    for found in summaries[1:]:
        differences.append({name: difference(found[name], first[name], draws=draws, seed=seed) for name in names})
    return Comparison(groups, max(top1, key=_gallery), names, summaries, differences)


def summarise(group: Group, *, draws: int = 2000, seed: int = 0) -> dict[str, Summary]:
    """Every number of a group.

    From ranks: means over seeds, pictures and subjects with a crossed bootstrap. Median ranks are means over subjects
    of each subject's median, without interval. Numbers that only metrics.json has (of pictures, say): means over
    subjects with Student's t interval over them, where there are `FEWEST_SUBJECTS` or more.

    Args:
        group: The runs.
        draws: Resamples of the crossed bootstrap.
        seed: Of the resamples.

    Returns:
        Metric name, as in metrics.json, to summary.

    Raises:
        ArtifactError: Subjects were tested with different pictures.
    """
    found: dict[str, Summary] = {}
    split = group.protocol.split
    for key in TASKS:
        mine = [(run, run.ranks[key]) for run in group.runs if key in run.ranks]
        if len(mine) < len(group.runs):
            continue
        (task, suffix), gallery = TASKS[key], mine[0][1].gallery
        for name, score in scores_of(gallery).items():
            scores, subjects, pictures = score_table(mine, score)
            bounds = SHARE if name.startswith(("top", "mrr")) else (1.0, float(gallery))
            found[f"{split}/{task}_{name}{suffix}"] = _crossed(scores, subjects, pictures, bounds, draws, seed)
        scores, subjects, _ = score_table(mine, QueryRanks.rank)
        medians = [_per_subject_median(mine, subject) for subject in subjects]
        name = f"{split}/{task}_median_rank_{gallery}way{suffix}"
        per_subject = dict(zip(subjects, medians, strict=True))
        found[name] = Summary(sum(medians) / len(medians), None, None, "", per_subject)
    for name in group.runs[0].metrics:
        if name not in found and all(name in run.metrics for run in group.runs):
            summary = _over_subjects(group.runs, name)
            if summary is not None:
                found[name] = summary
    return found


def scores_of(gallery: int) -> dict[str, Callable[[QueryRanks], Tensor]]:
    """Name, as in `rank_metrics`, to what gives each query's score: the numbers that are means over queries."""
    named: dict[str, Callable[[QueryRanks], Tensor]] = {}
    for k_way in sorted({*(k for k in K_WAY if k < gallery), gallery}):
        for k in (1, 5):
            if k_way > 1 and (k == 1 or k_way > 5 or k_way == gallery):
                named[f"top{k}_{k_way}way"] = partial(QueryRanks.kway, k_way=k_way, k=k)
    named[f"mrr_{gallery}way"] = QueryRanks.reciprocal_rank
    named[f"mean_rank_{gallery}way"] = QueryRanks.rank
    return named


def score_table(
    runs: Sequence[tuple[RunScores, QueryRanks]], score: Callable[[QueryRanks], Tensor]
) -> tuple[Tensor, list[int], Tensor]:
    """One score a subject and picture: means over the queries of a picture, then over seeds.

    Args:
        runs: Runs with the ranks of one task.
        score: What gives each query's score.

    Returns:
        Scores (n_subjects, n_pictures) float64, the subjects in order, and the pictures' image_index (n_pictures,).

    Raises:
        ArtifactError: Not all were tested with the same pictures.
    """
    seeds: dict[int, list[Tensor]] = {}
    pictures: Tensor | None = None
    for run, ranks in runs:
        values = score(ranks)
        for subject in torch.unique(ranks.subject).tolist():
            mine = ranks.subject == subject
            index, place, count = torch.unique(ranks.image_index[mine], return_inverse=True, return_counts=True)
            if pictures is not None and not torch.equal(index, pictures):
                raise ArtifactError(
                    f"{run.path} was scored on other pictures than {runs[0][0].path}, though their protocols are "
                    "alike: evaluate both again."
                )
            pictures = index
            sums = torch.zeros(len(index), dtype=torch.float64).index_add_(0, place, values[mine].double())
            seeds.setdefault(subject, []).append(sums / count)
    assert pictures is not None  # there is at least one run
    subjects = sorted(seeds)
    return torch.stack([torch.stack(seeds[subject]).mean(0) for subject in subjects]), subjects, pictures


def difference(summary: Summary, first: Summary, *, draws: int = 2000, seed: int = 0) -> Difference:
    """`summary` minus `first` over the subjects that both have; each has its own mean where they share none."""
    shared = [subject for subject in summary.per_subject if subject in first.per_subject]
    if not shared:
        return Difference(summary.value - first.value, None, None, "", None)
    mine, other = (torch.tensor([s.per_subject[subject] for subject in shared]).double() for s in (summary, first))
    test = paired_wilcoxon(mine, other)
    value = float((mine - other).mean())
    if (
        summary.scores is None
        or first.scores is None
        or summary.pictures is None
        or first.pictures is None
        or not torch.equal(summary.pictures, first.pictures)
    ):
        return Difference(value, None, None, "", test)
    rows = [[list(s.per_subject).index(subject) for subject in shared] for s in (summary, first)]
    found = crossed_bootstrap(summary.scores[rows[0]] - first.scores[rows[1]], draws=draws, seed=seed)
    return Difference(value, found.low, found.high, found.over, test)


def _crossed(
    scores: Tensor, subjects: list[int], pictures: Tensor, bounds: tuple[float, float], draws: int, seed: int
) -> Summary:
    per_subject = dict(zip(subjects, scores.mean(1).tolist(), strict=True))
    value = float(scores.mean())
    if len(pictures) < 2:
        return Summary(value, None, None, "", per_subject, scores, pictures)
    found = crossed_bootstrap(scores, draws=draws, seed=seed, bounds=bounds)
    low, high, over = found.low, found.high, str(found.over)
    if low == high and bounds == SHARE:  # all hit or all missed: resampling knows no other, the binomial law does
        (low, high), over = clopper_pearson(value * len(pictures), len(pictures)), "pictures"
    return Summary(value, low, high, over, per_subject, scores, pictures)


def _per_subject_median(runs: Sequence[tuple[RunScores, QueryRanks]], subject: int) -> float:
    """Mean over seeds of the median over queries."""
    ranks = [ranks.rank()[ranks.subject == subject] for _, ranks in runs if bool((ranks.subject == subject).any())]
    return float(torch.stack([values.quantile(0.5) for values in ranks]).mean())


def _over_subjects(runs: Sequence[RunScores], name: str) -> Summary | None:
    seeds: dict[int, list[float]] = {}
    for run in runs:
        value = run.metrics[name]["value"]
        if value is None or len(run.protocol.subjects) != 1:
            return None
        seeds.setdefault(run.protocol.subjects[0], []).append(float(value))
    per_subject = {subject: sum(seeds[subject]) / len(seeds[subject]) for subject in sorted(seeds)}
    values = torch.tensor(list(per_subject.values())).double()
    if len(values) < FEWEST_SUBJECTS:
        return Summary(float(values.mean()), None, None, "", per_subject)
    low, high = mean_interval(values)
    return Summary(float(values.mean()), low, high, "subjects", per_subject)


def _gallery(name: str) -> int:
    return int(name.rpartition("_")[2].removesuffix("way"))
