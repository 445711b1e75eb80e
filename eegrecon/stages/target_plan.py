"""What `extract-targets` is asked for: one plan a store, checked before any network is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eegrecon.config import TARGET_MODELS, Choice, TargetSpec
from eegrecon.data.blur import Blur, blur_levels
from eegrecon.errors import ConfigError
from eegrecon.models.vision import DEFAULT_MODEL, DEFAULT_WEIGHTS, open_clip_weights, pocket_heads_file
from eegrecon.registry import lookup, resolve

# Which keys of a target mean something to which kind; set elsewhere they are refused, never ignored.
BELONGS = {"layer": ("layer",), "pooling": ("layer",), "prompt": ("text",), "blur": ("image", "layer", "vae_latent")}
PLACES = ("{}", "{spaced}")
# Keys that came after the first stores were made: at their default they do not enter a store's identity.
LATER = ("layer", "pooling", "blur", "prompt", "dtype")


@dataclass(frozen=True)
class Plan:
    """One target store to make.

    Attributes:
        name: The store's.
        spec: The entry of the config it comes from, with this store's blur level alone.
        blur: That level.
    """

    name: str
    spec: TargetSpec
    blur: Blur

    @property
    def imports(self) -> bool:
        """Whether the rows come from published files instead of a network."""
        return self.spec.model.name == "feature_file"

    def config(self, data_set: str) -> dict[str, Any]:
        """Everything that decides this store, and its batch size, for `config.yaml`."""
        return {"data": {"set": data_set}, "target": {"name": self.name, **asdict(self.spec)}}

    def identity(self, data_set: str) -> dict[str, Any]:
        """What a store that is there already must have been made with.

        How many pictures go through the network at once is no part of it, nor where published files lie (their hashes
        are among the inputs).
        """
        defaults = {item.name: item.default for item in dataclasses.fields(TargetSpec)}
        own = self.config(data_set)
        target = {
            key: value
            for key, value in own["target"].items()
            if key != "batch_size" and not (key in LATER and value == defaults[key])
        }
        if self.imports:
            args = {key: value for key, value in self.spec.model.args.items() if key != "folder"}
            target["model"] = {**target["model"], "args": args}
        return {**own, "target": target}

    def text(self, concept: str) -> str:
        """What the text tower reads for a concept, such as `This picture is aircraft_carrier`."""
        # EEG_Image_decode@49cb3a2 keeps the underscores of the folder's name (atm.md 3), so {} does.
        return self.spec.prompt.replace("{spaced}", concept.replace("_", " ")).replace("{}", concept)


def plans(targets: dict[str, TargetSpec]) -> list[Plan]:
    """Turn the config's entries into one plan a store; a list of blur levels gives a store a level.

    The stores of a list are named after their level: `clip` with blur [0, 2.5] gives `clip-blur0` and `clip-blur2.5`.

    Raises:
        ConfigError: No target is named, or keys of an entry contradict each other; names all such keys.
    """
    if not targets:
        raise ConfigError("extract-targets has nothing to do: name at least one target under targets.")
    found: list[Plan] = []
    for name, spec in targets.items():
        _check(name, spec)
        levels = blur_levels(spec.blur, f"targets.{name}.blur")
        listed = isinstance(spec.blur, list | tuple)
        for level, value in zip(levels, spec.blur if listed else [spec.blur], strict=True):
            own = f"{name}-{level.label}" if listed else name
            found.append(Plan(own, dataclasses.replace(spec, blur=value), level))
    names = [plan.name for plan in found]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"extract-targets would make the store {', '.join(twice)} twice: rename a target.")
    return found


def _check(name: str, spec: TargetSpec) -> None:
    defaults = {item.name: item.default for item in dataclasses.fields(TargetSpec)}
    problems = [
        f"{key} belongs to kind {' or '.join(kinds)}"
        for key, kinds in BELONGS.items()
        if spec.kind not in kinds and getattr(spec, key) != defaults[key]
    ]
    if spec.kind == "layer" and spec.model.name == "git":  # a captioner's tower has one layer to give
        problems += [
            f"{key} means nothing to the model git, which gives all tokens of its last layer"
            for key in ("layer", "pooling")
            if getattr(spec, key) != defaults[key]
        ]
    elif spec.kind == "layer" and not spec.layer:
        problems.append("layer has no value, but kind layer needs a block's number or a module's name")
    if spec.kind == "text" and not any(place in spec.prompt for place in PLACES):
        problems.append(f"prompt is {spec.prompt!r}, which has no {{}} where the concept would stand")
    if spec.model.name == "feature_file":
        if spec.kind not in ("image", "text"):
            problems.append("published feature files hold the kinds image and text only")
        if spec.blur != defaults["blur"]:
            problems.append("blur cannot be applied to features that are made already")
    if problems:
        raise ConfigError(f"targets.{name} (kind {spec.kind}) contradicts itself: " + "; ".join(problems) + ".")


def build(plan: Plan) -> Any:
    """Load the network of a plan (or open its feature files): what embeds pictures, or texts for kind text.

    Raises:
        ConfigError: The model's arguments do not fit, or it gives another kind than the plan asks for.
        DataError: Weights are missing.
    """
    name, spec = plan.name, plan.spec
    lookup(TARGET_MODELS, spec.model.name)
    model = resolve(TARGET_MODELS, spec.model)
    if plan.imports or model.kind == spec.kind == "layer":
        return model
    if spec.kind in ("layer", "text"):
        if not hasattr(model, "encode_texts"):  # a CLIP model has both towers
            raise ConfigError(
                f"targets.{name}.kind is {spec.kind!r}, which needs a CLIP model, but {spec.model.name!r} gives "
                f"{model.kind!r}: mend it."
            )
        if spec.kind == "layer":
            from eegrecon.models.vision_layers import VisionLayer

            return VisionLayer(model, spec.layer, spec.pooling)
    elif model.kind != spec.kind:
        raise ConfigError(
            f"targets.{name}.kind is {spec.kind!r}, but the model {spec.model.name!r} gives {model.kind!r}: mend it."
        )
    return model


def source_files(choice: Choice) -> dict[str, Path]:
    """Local files whose change makes a store out of date, by the name of the input; those that are there."""
    args = choice.args
    files: dict[str, Path | None] = {}
    if choice.name == "pocket_clip":
        files["weights"] = Path(args.get("heads") or pocket_heads_file())
    elif choice.name == "open_clip":
        model = str(args.get("model", DEFAULT_MODEL))
        files["weights"] = open_clip_weights(model, args.get("pretrained", DEFAULT_WEIGHTS))
    elif choice.name == "sdxl_vae":
        from eegrecon.models.generators.latents import vae_file

        files["weights"] = vae_file(str(args.get("base", "pocket")))
    elif choice.name == "git":
        from eegrecon.models.captioners.git import weight_file

        files["weights"] = weight_file(str(args.get("name", "pocket")))
    elif choice.name == "feature_file" and "folder" in args:
        files |= {f"features_{part}": path for part, path in resolve(TARGET_MODELS, choice).files.items()}
    return {name: path for name, path in files.items() if path is not None and path.is_file()}
