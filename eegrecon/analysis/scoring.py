"""All numbers about a set of reconstructed pictures, with intervals, chance, ceiling and nulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from eegrecon.metrics.features import PictureNetwork, picture_features, picture_tensor
from eegrecon.metrics.functional.identification import (
    clopper_pearson,
    derangement,
    mean_interval,
    null_interval,
    two_way_identification,
)
from eegrecon.metrics.functional.pixels import pixcorr, ssim
from eegrecon.metrics.functional.retrieval import topk_retrieval

Entry = dict[str, Any]  # {"value", "ci95": [low, high], "chance"} and, for null hypotheses of 0.5, "null99"
SUFFIXES = ("_ceiling", "_shuffled", "_ridge", "_permuted_labels")


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


def score_embeds(
    eeg_embeds: Tensor,
    image_embeds: Tensor,
    *,
    seed: int,
    ridge_embeds: Tensor | None = None,
    pred_image_embeds: Tensor | None = None,
) -> dict[str, Entry]:
    """Score embeddings decoded from EEG against those of the n seen pictures.

    Args:
        eeg_embeds: (n, dim), row i decoded from the averaged trials of picture i.
        image_embeds: (n, dim), the gallery: every test picture once.
        seed: Of the derangement behind `_shuffled`.
        ridge_embeds: (n, dim) of the linear baseline, or None.
        pred_image_embeds: (n, draws, dim) sampled by the prior, or None.

    Returns:
        `test/retrieval_top{1,5}_<n>way` by cosine, with `_ridge`; `test/prior_cosine` with `_shuffled`.
    """
    n = len(image_embeds)
    gallery = normalize(image_embeds.double(), dim=1)
    metrics = {}
    for k in (1, 5):
        for suffix, embeds in (("", eeg_embeds), ("_ridge", ridge_embeds)):
            if embeds is not None:
                hits = topk_retrieval(normalize(embeds.double(), dim=1) @ gallery.T, torch.arange(n), k)
                metrics[f"test/retrieval_top{k}_{n}way{suffix}"] = proportion(hits, min(1.0, k / n))
    if pred_image_embeds is not None:
        order = derangement(n, seed)
        cosines = {
            suffix: cosine_similarity(pred_image_embeds[rows].double(), image_embeds[:, None].double(), dim=-1).mean(1)
            for suffix, rows in (("", torch.arange(n)), ("_shuffled", order))
        }
        chance = float(cosines["_shuffled"].mean())
        metrics |= {f"test/prior_cosine{suffix}": average(values, chance) for suffix, values in cosines.items()}
    return metrics


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
