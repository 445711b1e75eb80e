"""What an encoder is worth: its embeddings of one part of the data, and the numbers of `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from eegrecon.analysis.protocol import STAMP, Protocol, gallery_hash
from eegrecon.analysis.ranks import QueryRanks, save_ranks
from eegrecon.analysis.scoring import cosine_ranks, picture_ranks, summary_rows
from eegrecon.artifacts import input_record
from eegrecon.config import ENCODERS, Choice
from eegrecon.data.images import ImageSet
from eegrecon.data.layout import target_dir
from eegrecon.data.targets import TargetStore
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.manifest import Manifest
from eegrecon.metrics.functional.intervals import binomial_interval
from eegrecon.metrics.functional.retrieval import RetrievalScores, concept_ranks, concept_retrieval
from eegrecon.registry import resolve

BASELINE = "baseline_ridge.safetensors"

IDS = ("image_index", "concept_index", "subject", "repetition")


@torch.inference_mode()
def embed_part(network: nn.Module, data: ThingsDataModule, part: str) -> dict[str, Tensor]:
    """Every row of a part once: eeg_embeds, image_embeds (n, dim) and ids (n,), on the CPU."""
    device = next(network.parameters()).device
    rows: dict[str, list[Tensor]] = {name: [] for name in (*IDS, "eeg_embeds", "image_embeds")}
    project = getattr(network, "project_images", None)  # the linear baseline has none
    for batch in data.embed_dataloader(part):  # type: ignore[arg-type]
        embeds = network(batch["eeg"].to(device), batch["subject"].to(device))
        rows["eeg_embeds"].append(embeds.float().cpu())
        images = batch["targets"]["image"]
        rows["image_embeds"].append(images if project is None else project(images.to(device)).float().cpu())
        for name in IDS:
            rows[name].append(batch[name])
    return {name: torch.cat(values) for name, values in rows.items()}


def val_retrieval(eeg_embeds: Tensor, rows: dict[str, Tensor]) -> RetrievalScores:
    """Validation's retrieval of `eeg_embeds` (n, dim) among the rows' `image_embeds`, averaged over galleries."""
    return concept_retrieval(eeg_embeds, rows["image_embeds"], rows["image_index"], rows["concept_index"])


def val_ranks(eeg_embeds: Tensor, rows: dict[str, Tensor]) -> QueryRanks:
    """The counts behind `val_retrieval`, gallery after gallery."""
    found = concept_ranks(eeg_embeds, rows["image_embeds"], rows["image_index"], rows["concept_index"])
    index, subject = (rows[name][found.row].long() for name in ("image_index", "subject"))
    return QueryRanks(index, subject, found.better, found.ties, found.n_way)


def val_payload(
    cfg: Any, data: ThingsDataModule, scores: dict[str, RetrievalScores], selection: Mapping[str, Any]
) -> dict[str, Any]:
    """The payload of train-encoder's metrics.json.

    The interval counts every trial as independent, though ten share a concept.

    Args:
        cfg: `TrainEncoderConfig`.
        data: What was validated on.
        scores: Suffix of the metric's name ("" for the encoder, "_ridge") to validation retrieval.
        selection: The manifest's, for the protocol stamp.
    """
    metrics = {}
    for suffix, score in scores.items():
        for k, value in ((1, score.top1), (5, score.top5)):
            interval = binomial_interval(value * score.n_queries, score.n_queries)
            metrics[f"val/retrieval_top{k}_{score.n_way}way{suffix}"] = {"value": value, "ci95": list(interval)}
    first = scores[""]
    protocol = {
        "set": cfg.data.set,
        "subjects": data.subjects,
        "test_subjects": data.test_subjects,
        "split": data.split.describe(),
        "retrieval": "cosine; one picture per concept in a gallery, one gallery per exemplar, all trials averaged",
        "n_queries": first.n_queries,
        "chance": {"top1": 1 / first.n_way, "top5": min(1.0, 5 / first.n_way)},
        "permuted_labels": cfg.permute_labels,
        "target": data.targets["image"].interface(),
        "seed": cfg.seed,
        STAMP: stamp(cfg.data, data, "val", selection).to_dict(),
    }
    return {"schema": 1, "protocol": protocol, "metrics": metrics}


def print_val_scores(payload: dict[str, Any]) -> None:
    """Print validation's numbers beside chance, one a line, on stderr."""
    console = Console(stderr=True, highlight=False)
    for name, entry in payload["metrics"].items():
        low, high = entry["ci95"]
        chance = payload["protocol"]["chance"]["top1" if "top1" in name else "top5"]
        console.print(f"{name}: {entry['value']:.3f} [{low:.3f}, {high:.3f}], chance {chance:.3f}", markup=False)


def load_ridge(directory: Path, data: ThingsDataModule) -> nn.Module | None:
    """The linear baseline of a finished `encoder/`, ready for EEG in the store's unit; None if it was not fitted.

    Raises:
        ArtifactError: The file does not say how many samples a bin has (an earlier version wrote it).
    """
    path = directory / BASELINE
    if not path.is_file():
        return None
    dim = data.targets["image"].dim
    state = load_file(path)
    if "samples_per_bin" not in state:
        raise ArtifactError(
            f"The baseline {path} does not hold samples_per_bin, as an earlier version of eegrecon wrote it: make it "
            "again with `eegrecon train-encoder --overwrite`."
        )
    choice = Choice("ridge", {"samples_per_bin": int(state["samples_per_bin"])})
    baseline = resolve(ENCODERS, choice, n_chans=data.n_chans, n_times=data.n_times, dim=dim)
    baseline.load_state_dict(state, strict=True)
    return baseline.eval()


def averaged_trials(cfg_data: Any, data: ThingsDataModule, part: str) -> tuple[int, int]:
    """How many trials are averaged to one query: the smallest and the largest number over pictures."""
    stores = data.test_trials if part == "test" else data.trials
    chosen = {"sessions": cfg_data.sessions, "repetitions": cfg_data.keep_repetitions}
    counts = np.concatenate([_counts(store.open("test" if part == "test" else "train", **chosen)) for store in stores])
    return int(counts.min()), int(counts.max())


def _counts(partition: Any) -> np.ndarray:
    used = partition.used
    return used.sum(1)[used.any(1)]


def stamp(cfg_data: Any, data: ThingsDataModule, part: str, selection: Mapping[str, Any]) -> Protocol:
    """What was asked of whom, for `metrics.json`.

    Args:
        cfg_data: The config's `data` block.
        data: What is scored.
        part: `val` or `test`.
        selection: That of the encoder's manifest.
    """
    ids = data.split.ids[part]
    test = part == "test"
    blurred = bool(data.targets["image"].header["blur"])
    n = len(ids) if test else data.split.val_concepts
    return Protocol(
        set=cfg_data.set,
        split=part,
        training=selection.get("training") or cfg_data.protocol,
        subjects=tuple(data.test_subjects if test else data.subjects),
        gallery_kind="blurred" if blurred else "exact picture" if test else "one per concept",
        gallery_n=n,
        gallery_sha256=gallery_hash(ids),
        repetitions=averaged_trials(cfg_data, data, part)[0],
        channels=tuple(data.ch_names),
        window=(float(cfg_data.window[0]), float(cfg_data.window[1])),
        sfreq=data.sfreq,
        # Ridge's penalty is selected on the same number as a network's epoch: one rule.
        selection=selection.get("rule") or (f"best {selection['monitor']}" if "monitor" in selection else "not stated"),
        target=data.targets["image"].name,
    )


def protocol_block(
    cfg: Any, data: ThingsDataModule, encoder: Manifest, *, permuted_labels: bool, n_pictures: int, part: str = "test"
) -> dict[str, Any]:
    """What metrics.json says of how test (or validation) trials were scored, for every stage that scores them.

    Args:
        cfg: `EvaluateConfig` or `ReconstructConfig`.
        data: What is scored.
        encoder: The encoder's manifest.
        permuted_labels: Whether the encoder learnt permuted labels.
        n_pictures: Size of the gallery.
        part: "test" or "val".
    """
    counts = averaged_trials(cfg.data, data, part)
    return {
        "set": cfg.data.set,
        "protocol": cfg.data.protocol,
        "subjects": data.subjects,
        "test_subjects": data.test_subjects,
        "repetitions": f"{part}: mean of {' to '.join(map(str, dict.fromkeys(counts)))}",
        "sessions": cfg.data.sessions,
        "keep_repetitions": cfg.data.keep_repetitions,
        "permuted_labels": permuted_labels,
        "target": data.targets["image"].interface(),
        "retrieval": f"cosine, gallery: all {n_pictures} {part} pictures, one a concept",
        "seed": cfg.seed,
        STAMP: stamp(cfg.data, data, part, encoder.selection).to_dict(),
    }


def open_text(cfg: Any, images: ImageSet, dim: int) -> TargetStore | None:
    """The store of concept names that the config names, if it names one.

    Args:
        cfg: `EvaluateConfig` or `ReconstructConfig`.
        images: The set's pictures.
        dim: Of the embeddings that are compared with the names.

    Raises:
        ConfigError: The store does not hold text embeddings of this size.
        DataError: It is missing or broken.
    """
    if not cfg.text_target.name:
        return None
    path = target_dir(images.set_root, cfg.text_target.name)
    store = TargetStore(path, images, l2_normalise=cfg.text_target.l2_normalise)
    if store.kind != "text" or store.shape != (dim,):
        raise ConfigError(
            f"text_target.name is {store.name!r}, whose vectors are of kind {store.kind} and shape {store.shape}, but "
            f"classification needs text embeddings of shape ({dim},), the size of the target {cfg.target.name!r}: name "
            "a text target of the same model, or leave it empty."
        )
    return store


def text_input(cfg: Any) -> dict[str, dict[str, str]]:
    """Lineage entry of the text target, {} when none is named."""
    if not cfg.text_target.name:
        return {}
    return {"text_targets": input_record(target_dir(Path(cfg.data.root) / cfg.data.set, cfg.text_target.name))}


def ranks_of(
    embeds: Mapping[str, Tensor], image_embeds: Tensor, text: TargetStore | None, images: ImageSet
) -> dict[str, QueryRanks]:
    """Ranks of the seen pictures, and of their concepts' names (zero-shot classification), for every set of embeddings.

    Args:
        embeds: `eeg_embeds` (q, dim), `image_index` and `subject` (q,); if there is a baseline, `ridge_embeds` and, if
            the encoder projects its gallery, `ridge_image_embeds` (q, target_dim).
        image_embeds: (q, dim) of the seen pictures; the gallery is every picture once.
        text: Of `open_text`.
        images: The set's pictures.

    Returns:
        Key of `analysis.scoring.TASKS` to ranks.
    """
    ids = {name: embeds[name].long() for name in ("image_index", "subject")}
    found = {"": embeds["eeg_embeds"]}
    found |= {"_ridge": embeds["ridge_embeds"]} if "ridge_embeds" in embeds else {}
    galleries = {"": image_embeds, "_ridge": embeds.get("ridge_image_embeds", image_embeds)}
    ranks = {key: picture_ranks(values, galleries[key], **ids) for key, values in found.items()}
    if text is not None:
        index = ids["image_index"].numpy()
        _, first, target = np.unique(images.concept_index[index], return_index=True, return_inverse=True)
        names = torch.from_numpy(text.rows(index[first]))  # one a concept
        for key, values in found.items():
            ranks[f"_text{key}"] = cosine_ranks(values, names, torch.from_numpy(target), **ids)
    return ranks


def write_ranks(directory: Path, ranks: Mapping[str, QueryRanks]) -> list[str]:
    """Write `ranks<key>.safetensors` for every key (see `analysis.scoring.TASKS`) and return the names."""
    names = []
    for key, found in ranks.items():
        names.append(f"ranks{key}.safetensors")
        save_ranks(directory / names[-1], found)
    return names


def score_table(
    metrics: Mapping[str, Any], *, title: str, caption: str = "", starred: str = "", empty_columns: bool = True
) -> Table:
    """The table of scores: decoded beside chance, ceiling and nulls.

    Args:
        metrics: Those of metrics.json.
        title: Above it.
        caption: Below it.
        starred: The metric that gets an asterisk.
        empty_columns: Keep columns in which no metric has a value.
    """
    rows = summary_rows(metrics)
    columns = [name for name in rows[0] if empty_columns or any(row[name] != "–" for row in rows)]
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for row in rows:
        named = row["metric"].removeprefix("test/").removeprefix("val/") + ("*" if row["metric"] == starred else "")
        table.add_row(*({**row, "metric": named}[name] for name in columns))
    return table


def print_table(table: Table) -> None:
    """Print a table of scores on stdout, wide enough for its columns."""
    Console(width=max(110, Console().width)).print(table)
