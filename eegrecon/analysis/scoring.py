"""All numbers about a set of reconstructed pictures, with intervals, chance, ceiling and nulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from eegrecon.analysis.ranks import QueryRanks, query_ranks
from eegrecon.metrics.features import PictureNetwork, picture_features, picture_tensor
from eegrecon.metrics.functional.identification import (
    clopper_pearson,
    derangement,
    mean_interval,
    null_interval,
    two_way_identification,
)
from eegrecon.metrics.functional.pixels import pixcorr, ssim
from eegrecon.metrics.functional.retrieval import first_rows

Entry = dict[str, Any]  # {"value", "ci95": [low, high], "chance"} and, for null hypotheses of 0.5, "null99"
SUFFIXES = ("_ceiling", "_shuffled", "_ridge", "_permuted_labels")
K_WAY = (2, 4, 10, 50, 100, 200)  # the small galleries that the field reports (facts/atm.md sections 7.1 and 7.3)
# What a set of ranks is called in its file's name, and its task and suffix in the names of its numbers.
TASKS = {
    "": ("retrieval", ""),
    "_ridge": ("retrieval", "_ridge"),
    "_text": ("classification", ""),
    "_text_ridge": ("classification", "_ridge"),
    "_caption": ("caption", ""),
    "_caption_ceiling": ("caption", "_ceiling"),
    "_caption_shuffled": ("caption", "_shuffled"),
}


@dataclass
class Scores:
    """`metrics`: name to entry; `per_picture`: name to (n,) scores of the decoded pictures."""

    metrics: dict[str, Entry] = field(default_factory=dict)
    per_picture: dict[str, Tensor] = field(default_factory=dict)


def proportion(scores: Tensor, chance: float) -> Entry:
    """Entry for the mean of scores in [0, 1]: Clopper-Pearson 95 % interval, one trial a picture, and chance's 99 %.

    Args:
        scores: (n,) hits or shares.
        chance: Expected value without information.
    """
    n = len(scores)
    low, high = clopper_pearson(float(scores.double().sum()), n)
    null = null_interval(n, chance)
    return {"value": float(scores.double().mean()), "ci95": [low, high], "chance": chance, "null99": list(null)}


def average(scores: Tensor, chance: float | None) -> Entry:
    """Entry for the mean of scores that are no proportions: Student's t 95 % interval over pictures."""
    return {"value": float(scores.double().mean()), "ci95": list(mean_interval(scores)), "chance": chance}


def score_pictures(
    decoded: Sequence[Sequence[Any]],
    seen: Sequence[Any],
    ceiling: Sequence[Sequence[Any]],
    *,
    networks: Mapping[str, PictureNetwork],
    pixel_size: int,
    seed: int,
    progress: Callable[[str], None] = lambda text: None,
) -> Scores:
    """Score reconstructions against the seen pictures.

    Args:
        decoded: Draws; each n PIL pictures reconstructed from EEG. Scores are averaged over draws.
        seen: n PIL pictures.
        ceiling: Draws; each n pictures generated from the seen pictures' own embeddings.
        networks: Name to network; `two_way_<name>` is computed in its features.
        pixel_size: Height and width at which pixels are compared.
        seed: Of the derangement behind `_shuffled`.
        progress: Told what is being computed.

    Returns:
        `test/two_way_<name>`, `test/pixcorr` and `test/ssim`, each also with `_ceiling` (best the generator could do)
        and `_shuffled` (reconstructions dealt to other pictures). Chance of the pixel metrics is their shuffled mean.
    """
    order = derangement(len(seen), seed)
    scores = Scores()

    def both(name: str, compare: Callable[[Any, Any], Tensor], prepare: Callable[[Sequence[Any]], Any]) -> None:
        progress(name)
        true = prepare(seen)
        found: dict[str, list[Tensor]] = {"": [], "_shuffled": [], "_ceiling": []}
        for pictures in decoded:
            made = prepare(pictures)
            found[""].append(compare(made, true))
            found["_shuffled"].append(compare(made[order], true))
        found["_ceiling"] = [compare(prepare(pictures), true) for pictures in ceiling]
        for suffix, draws in found.items():
            mean = torch.stack(draws).mean(0)
            if name.startswith("two_way"):
                scores.metrics[f"test/{name}{suffix}"] = proportion(mean, 0.5)
            else:
                chance = float(torch.stack(found["_shuffled"]).mean())
                scores.metrics[f"test/{name}{suffix}"] = average(mean, chance)
        scores.per_picture[f"test/{name}"] = torch.stack(found[""]).mean(0)

    for name, network in networks.items():
        both(f"two_way_{name}", two_way_identification, partial(picture_features, network))
    for name, function in (("pixcorr", pixcorr), ("ssim", ssim)):
        both(name, function, partial(picture_tensor, size=pixel_size))
    return scores


def cosine_ranks(
    eeg_embeds: Tensor, gallery: Tensor, target: Tensor, *, image_index: Tensor, subject: Tensor
) -> QueryRanks:
    """Where every query's own entry comes in a gallery, by cosine similarity in float64.

    Args:
        eeg_embeds: (q, dim).
        gallery: (g, dim) embeddings of pictures, or of concepts' names.
        target: (q,) int64, the row of the gallery that belongs to each query.
        image_index: (q,) the picture that was seen.
        subject: (q,).

    Raises:
        ValueError: Embeddings are not finite.
    """
    similarity = normalize(eeg_embeds.double(), dim=1) @ normalize(gallery.double(), dim=1).T
    return query_ranks(similarity, target, image_index, subject)


def picture_ranks(eeg_embeds: Tensor, image_embeds: Tensor, *, image_index: Tensor, subject: Tensor) -> QueryRanks:
    """Where the seen picture comes among all pictures that were seen.

    Args:
        eeg_embeds: (q, dim).
        image_embeds: (q, dim) of the picture seen in each row; rows of one picture are equal and one gallery entry.
        image_index: (q,).
        subject: (q,).
    """
    first = first_rows(image_index[:, None])  # one row a picture, in the order of `image_index`
    target = torch.searchsorted(image_index[first], image_index)
    return cosine_ranks(eeg_embeds, image_embeds[first], target, image_index=image_index, subject=subject)


def rank_metrics(ranks: Mapping[str, QueryRanks]) -> dict[str, Entry]:
    """All retrieval numbers of some tasks, each a mean over queries.

    Args:
        ranks: Key of `TASKS` to the ranks.

    Returns:
        For a gallery of g, by task (`retrieval`, `classification`) and with `_ridge` for the baseline:
        `test/<task>_top1_<k>way` for k of `K_WAY` up to g and for g, the exact expectation over distractors;
        `…_top5_<k>way` for k above 5 and for g; `…_mrr_<g>way`, `…_mean_rank_<g>way` and `…_median_rank_<g>way`
        (ranks from 1). Intervals take every query as independent, which holds within one subject.
    """
    metrics = {}
    for key, found in ranks.items():
        (task, suffix), n = TASKS[key], found.gallery
        for k_way in sorted({*(k for k in K_WAY if k < n), n}):
            for k in (1, 5):
                if k == 1 or k_way > 5 or k_way == n:
                    hits = found.kway(k_way, k) if k_way > 1 else torch.ones(len(found.better)).double()
                    metrics[f"test/{task}_top{k}_{k_way}way{suffix}"] = proportion(hits, min(1.0, k / k_way))
        harmonic = float((1 / torch.arange(1, n + 1).double()).mean())
        metrics[f"test/{task}_mrr_{n}way{suffix}"] = average(found.reciprocal_rank(), harmonic)
        rank = found.rank()
        metrics[f"test/{task}_mean_rank_{n}way{suffix}"] = average(rank, (n + 1) / 2)
        low, high = median_interval(rank)
        middle = {"value": float(rank.quantile(0.5)), "ci95": [low, high], "chance": (n + 1) / 2}
        metrics[f"test/{task}_median_rank_{n}way{suffix}"] = middle
    return metrics


def median_interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Interval of a median between two order statistics, exact for any distribution (Conover 1999, section 3.2).

    Args:
        values: (n,).
        level: Coverage at least; with too few values for it, the smallest and the largest.
    """
    from scipy.stats import binom

    n = len(values)
    ordered = values.double().sort().values
    below = max(0, int(binom.ppf((1 - level) / 2, n, 0.5)) - 1)
    return float(ordered[below]), float(ordered[n - 1 - below])


def prior_scores(pred_image_embeds: Tensor, image_embeds: Tensor, *, seed: int) -> Scores:
    """`test/prior_cosine` with `_shuffled`: how alike the prior's embeddings are to those of the seen pictures.

    Args:
        pred_image_embeds: (n, draws, dim) sampled by the prior.
        image_embeds: (n, dim).
        seed: Of the derangement behind `_shuffled`.
    """
    n = len(image_embeds)
    cosines = {
        suffix: cosine_similarity(pred_image_embeds[rows].double(), image_embeds[:, None].double(), dim=-1).mean(1)
        for suffix, rows in (("", torch.arange(n)), ("_shuffled", derangement(n, seed)))
    }
    chance = float(cosines["_shuffled"].mean())
    metrics = {f"test/prior_cosine{suffix}": average(values, chance) for suffix, values in cosines.items()}
    return Scores(metrics, {"test/prior_cosine": cosines[""]})


def with_permuted_labels(metrics: Mapping[str, Entry], permuted: Mapping[str, Entry]) -> dict[str, Entry]:
    """Add the decoded numbers of a run whose encoder learnt permuted picture labels, as `<name>_permuted_labels`."""
    added = {
        f"{name}_permuted_labels": permuted[name]
        for name in metrics
        if name in permuted and not name.endswith(SUFFIXES)
    }
    return {**metrics, **added}


def summary_rows(metrics: Mapping[str, Entry]) -> list[dict[str, str]]:
    """One row of text per metric for a table: decoded with its interval, chance, ceiling, shuffled, permuted, ridge."""

    def text(entry: Entry | None, interval: bool = False) -> str:
        if entry is None or entry["value"] is None:
            return "–"
        value = f"{entry['value']:.3f}"
        return f"{value} [{entry['ci95'][0]:.3f}, {entry['ci95'][1]:.3f}]" if interval else value

    rows = []
    for name, entry in metrics.items():
        if name.endswith(SUFFIXES):
            continue
        row = {"metric": name, "decoded [95 %]": text(entry, interval=True)}
        row["chance"] = "–" if entry["chance"] is None else f"{entry['chance']:.3f}"
        for suffix in ("_ceiling", "_shuffled", "_permuted_labels", "_ridge"):
            row[suffix[1:].replace("_", " ")] = text(metrics.get(name + suffix))
        rows.append(row)
    return rows
