"""Are imported features those of these pictures, row by row, and of the model they are said to be of?"""

from __future__ import annotations

from typing import Any

import numpy as np

from eegrecon.data.feature_files import PARTITIONS, FeatureFiles
from eegrecon.data.images import ImageSet
from eegrecon.errors import DataError
from eegrecon.models.vision import ClipModel, at_hand, load_open_clip, load_pocket_clip
from eegrecon.stages.target_plan import Plan

# The published features went through a random crop of 0.9 to 1.0 of the area, so pictures only come near; texts do not.
NEAR = {"image": 0.8, "text": 0.98}
TIE = 0.02  # two pictures that differ by less than this in cosine may change places


def spot_check(features: FeatureFiles, images: ImageSet, plan: Plan) -> dict[str, Any]:
    """Embed a few pictures (or texts) with the model the features claim, and compare.

    Rows come in neighbouring pairs spread over each file: neighbours are mostly of one concept, so exchanged pictures
    of a concept are found as well as exchanged concepts.

    Returns:
        For the manifest: {rows, mean_cosine, min_cosine}, or {rows: 0, why} where nothing could be compared.

    Raises:
        DataError: The vectors are another model's, or rows are in another order.
    """
    _refuse_other_size(features, plan.spec.kind)
    if not features.spot_check:
        return {"rows": 0, "why": "spot_check is 0"}
    model = _model(features)
    if model is None:
        return {"rows": 0, "why": f"the weights of {features.model} ({features.weights_tag}) are not on this machine"}
    cosines: list[float] = []
    for partition in PARTITIONS:
        index = images.train_index if partition == "train" else images.test_index
        rows = _pairs(len(index), features.spot_check)
        stored = np.concatenate([features.rows(images, plan.spec.kind, partition, r, r + 1) for r in rows])
        if plan.spec.kind == "image":
            fresh = np.concatenate([model.encode([images.load(int(index[r]))]) for r in rows])
        else:
            fresh = model.encode_texts([plan.text(images.concept_of(int(index[r]))) for r in rows])
        cosines += _compare(stored, fresh, rows, features, plan, partition)
    return {
        "rows": len(cosines),
        "mean_cosine": round(float(np.mean(cosines)), 4),
        "min_cosine": round(float(np.min(cosines)), 4),
    }


def _refuse_other_size(features: FeatureFiles, kind: str) -> None:
    """Whatever its weights, an architecture that open_clip knows has one embedding size."""
    import open_clip

    known = open_clip.get_model_config(features.model) if features.model in open_clip.list_models() else None
    values = features.block("train", kind)
    if known is not None and values is not None and values.shape[1] != known["embed_dim"]:
        raise DataError(
            f"{features.files['train']} holds vectors of {values.shape[1]} numbers, but {features.model} gives "
            f"{known['embed_dim']}: they are another model's, so name it in args.model and args.weights_tag."
        )


def _compare(
    stored: np.ndarray, fresh: np.ndarray, rows: np.ndarray, features: FeatureFiles, plan: Plan, partition: str
) -> list[float]:
    path, claim = features.files[partition], f"{features.model} ({features.weights_tag})"
    if stored.shape != fresh.shape:
        raise DataError(
            f"{path} holds vectors of {stored.shape[1]} numbers, but {claim} gives {fresh.shape[1]}: they are another "
            "model's, so name it in args.model and args.weights_tag."
        )
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (stored, fresh))
    similarity = a @ b.T
    own = np.diagonal(similarity)
    astray = [
        f"row {rows[i]} looks like row {rows[int(np.argmax(similarity[i]))]}"
        for i in range(len(rows))
        if similarity[i].max() > own[i] + TIE
    ]
    if own.mean() < NEAR[plan.spec.kind] and len(astray) > len(rows) / 2 and similarity.max(axis=1).mean() < 0.5:
        astray = []  # nothing resembles anything: another model rather than another order
    if astray:
        raise DataError(
            f"The rows of {path} are in another order than the pictures: embedding {len(rows)} of them again with "
            f"{claim}, {len(astray)} are elsewhere ({astray[0]}): take a file in THINGS order (folders sorted, then "
            "files)."
        )
    if own.mean() < NEAR[plan.spec.kind]:
        raise DataError(
            f"The vectors in {path} are not those of {claim}: {len(rows)} rows embedded again have a mean cosine of "
            f"{own.mean():.2f} to them, expected at least {NEAR[plan.spec.kind]}: name their model in args.model and "
            "args.weights_tag, or check the prompt and the pictures."
        )
    return [float(value) for value in own]


def _pairs(count: int, wanted: int) -> np.ndarray:
    firsts = np.linspace(0, max(count - 2, 0), max(wanted // 2, 1)).round().astype(int)
    return np.unique(np.clip(np.concatenate([firsts, firsts + 1]), 0, count - 1))


def _model(features: FeatureFiles) -> ClipModel | None:
    if features.model == "pocket_clip":
        return load_pocket_clip()
    if at_hand(features.model, features.weights_tag):
        return load_open_clip(features.model, features.weights_tag)
    return None
