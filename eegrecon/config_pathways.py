"""Which pathways make a picture: the block `pathways` of `config_schema`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SemanticConfig:
    """Words as the prompt, read from the prior's image embedding."""

    # captions: a projector and GIT; retrieval: the nearest name of a training concept, the baseline; "": none.
    source: str = field(default="", metadata={"choices": ("", "captions", "retrieval")})
    projector: str = ""  # captions: the folder `<root>/<set>/projectors/<name>` that train-projector made
    captioner: str = "pocket"  # captions: "pocket", a fetched GIT repository or a folder
    num_beams: int = field(default=1, metadata={"minimum": 1})


@dataclass(frozen=True)
class PathwaysConfig:
    """Any subset of the paper's three, at least one; how much each counts is the generator's business.

    `generator.args.strength` says how far latents are noised before they are denoised (1: nothing of them is left),
    `generator.args.prompt_strength` how much captions count (with `generator.args.captions: true`, which keeps the text
    encoders).
    """

    # The prior's image embedding through the IP-Adapter; false: the zero embedding, which says nothing.
    prior: bool = True
    # VAE latents that denoising starts from: of the network of train-low-level, or of the encoder's latent head.
    low_level: str = field(default="", metadata={"choices": ("", "low_level", "head")})
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
