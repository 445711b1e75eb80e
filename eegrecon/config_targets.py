"""What target stores are made of: the models, and the block of `config_schema` that describes one store."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from eegrecon.config_choice import Choice

TARGET_MODELS = {
    "pocket_clip": "eegrecon.models.vision:load_pocket_clip",
    "open_clip": "eegrecon.models.vision:load_open_clip",
    "sdxl_vae": "eegrecon.models.generators.latents:load_vae",
    "git": "eegrecon.models.captioners.tower:load_tower",  # kind layer: the visual tokens that a captioner reads
    "feature_file": "eegrecon.data.feature_files:FeatureFiles",  # no network: rows that somebody else extracted
}


@dataclass(frozen=True)
class TargetSpec:
    """One target store to make (a list of blur levels: one store a level)."""

    kind: str = field(default=MISSING, metadata={"choices": ("image", "layer", "text", "vae_latent")})
    model: Choice = field(default_factory=Choice, metadata={"registry": TARGET_MODELS})
    batch_size: int = field(default=64, metadata={"minimum": 1})
    layer: str = ""  # kind layer: k for what leaves block k of the vision tower (0: what enters the first), or a module
    pooling: str = field(default="mean", metadata={"choices": ("mean", "cls", "tokens")})  # kind layer
    # Before the model sees a picture: 0 (none), the sigma of a Gaussian in pixels, {kernel: 15, size: 224}, or a list.
    blur: Any = 0
    prompt: str = "This picture is {}"  # kind text; {} is the concept as its folder names it, {spaced} without _
    dtype: str = field(default="float32", metadata={"choices": ("float32", "float16")})
