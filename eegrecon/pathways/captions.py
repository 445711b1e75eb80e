"""From image embeddings to captions: the one function that stages and the pipeline call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eegrecon.artifacts import require_interface
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.loading import load_stage

SOURCES = ("captions", "retrieval")
SPACE = ("model", "weights_tag", "kind", "layer", "dim", "normalised")  # what two ends of an image embedding must share


def captions_of(
    image_embeds: torch.Tensor,
    interface: Mapping[str, Any],
    *,
    source: str,
    projector: str | Path = "",
    captioner: str = "pocket",
    names: Sequence[str] = (),
    num_beams: int = 1,
    device: str = "cpu",
) -> list[str]:
    """Put image embeddings into words.

    Args:
        image_embeds: (n, dim), true ones or a prior's.
        interface: Whose space they are in (`TargetStore.interface()`, a prior's `manifest.interface`).
        source: "captions": projector, then GIT; "retrieval": "a picture of" the nearest of `names`.
        projector: Directory that `train-projector` finished (source captions).
        captioner: "pocket", a fetched GIT repository or a folder (source captions).
        names: Concepts to choose among, such as `training_names` (source retrieval).
        num_beams: Beams of the captioner's search (source captions).
        device: Where the networks run.

    Returns:
        n captions.

    Raises:
        ArtifactError: The projector is unfinished, was trained on another embedding space or for another captioner.
        ConfigError: Unknown source, or an argument of the other one.
        DataError: Weights are not on this machine.
    """
    if source not in SOURCES:
        raise ConfigError(f"the source of captions is {source!r}; choose one of {', '.join(SOURCES)}.")
    foreign: dict[str, dict[str, Any]] = {
        "captions": {"names": len(names)},
        "retrieval": {"projector": projector, "num_beams": num_beams != 1},
    }
    if odd := [name for name, given in foreign[source].items() if given]:
        raise ConfigError(f"{', '.join(odd)} mean nothing to captions of the source {source!r}: leave them out.")
    if source == "retrieval":
        from eegrecon.models.captioners.retrieval import NameRetrieval
        from eegrecon.models.judges import load_clip_space

        clip = load_clip_space(interface).to(device)
        return NameRetrieval(names, lambda texts: torch.from_numpy(clip.encode_texts(texts))).captions(
            image_embeds.cpu()
        )
    return _from_git(image_embeds, interface, Path(projector), captioner, num_beams, device)


def _from_git(
    image_embeds: torch.Tensor, interface: Mapping[str, Any], directory: Path, name: str, num_beams: int, device: str
) -> list[str]:
    from eegrecon.models.captioners.git import load_git

    if directory == Path():
        raise ConfigError("captions need a projector: name a directory that `eegrecon train-projector` has finished.")
    stage = load_stage(directory, device)
    if stage.manifest.stage != "train-projector":
        raise ArtifactError(f"{directory} was made by {stage.manifest.stage}, expected train-projector: name another.")
    space = {key: interface[key] for key in SPACE if key in interface}
    fix = "`eegrecon train-projector` with the target that these embeddings are of"
    require_interface(stage.manifest, space, manifest_path=directory, wanted_by="the image embeddings", fix=fix)
    git = load_git(name, num_beams=num_beams)
    if stage.manifest.interface["captioner"] != git.interface():
        raise ArtifactError(
            f"the projector {directory} makes tokens for {_who(stage.manifest.interface['captioner'])}, but the "
            f"captioner is {_who(git.interface())}: make the token store with extract-targets, then train-projector, "
            "for the same captioner."
        )
    git = git.to(device)
    captions: list[str] = []
    with torch.inference_mode():
        for part in image_embeds.float().split(64):  # tokens of all rows at once may be gigabytes
            captions += git.caption(stage.network(part.to(device)))
    return captions


def _who(captioner: Mapping[str, Any]) -> str:
    return f"{captioner['model']} {captioner['weights_tag']} ({captioner['n_tokens']} x {captioner['width']})"


def training_names(images: Any, held_out: Collection[int] = ()) -> list[str]:
    """The names of a set's training concepts, spaces for underscores, in THINGS order: retrieval's usual vocabulary.

    Args:
        images: An `ImageSet`.
        held_out: Concepts (`concept_index`) to leave out, where they are what is looked for.
    """
    index = [int(i) for i in images.train_index if int(images.concept_index[i]) not in held_out]
    return list(dict.fromkeys(images.concept_of(i).replace("_", " ") for i in index))
