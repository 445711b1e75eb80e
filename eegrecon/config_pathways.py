"""Which pathways make a picture: the block `pathways` of `config_schema`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PathwaysConfig:
    """Any subset of the paper's three, at least one; how much each counts is the generator's business.

    `generator.args.strength` says how far latents are noised before they are denoised (1: nothing of them is left),
    `generator.args.prompt_strength` how much captions count.
    """

    # The prior's image embedding through the IP-Adapter; false: the zero embedding, which says nothing.
    prior: bool = True
    # VAE latents that denoising starts from: of the network of train-low-level, or of the encoder's latent head.
    low_level: str = field(default="", metadata={"choices": ("", "low_level", "head")})
    # Words as the prompt, read from the prior's image embedding.
    semantic: str = field(default="", metadata={"choices": ("", "captions", "retrieval")})
