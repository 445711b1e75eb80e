"""What an encoder is asked to learn: the blocks of `config_schema` for targets and for the loss."""

import math
from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass(frozen=True)
class TargetConfig:
    """A target store by name (empty: none); `l2_normalise` is the reader's option, stores hold raw vectors.

    `levels` and `mixing` belong to the `target` of train-encoder alone: other stores of the same shape (blur levels,
    sharp first) of which training rows see a random one, the mean, or the one that fits the picture (`uncertainty`,
    see `modules.target_levels`). A list without `name` stands below it. Validation and test see `name`.
    """

    name: str = MISSING
    l2_normalise: bool = False
    levels: list[str] = field(default_factory=list)
    mixing: str = field(default="none", metadata={"choices": ("none", "random", "mean", "uncertainty")})


@dataclass(frozen=True)
class LossConfig:
    """The encoder's loss, `scale * sum(weight * term)`; see `losses.objective` for the terms."""

    contrastive: float = field(default=MISSING, metadata={"minimum": 0})
    mse: float = field(default=MISSING, metadata={"minimum": 0})
    cosine: float = field(default=0.0, metadata={"minimum": 0})
    text: float = field(default=0.0, metadata={"minimum": 0})  # the contrastive term with `text_target`
    vae_latent: float = field(default=0.0, metadata={"minimum": 0})
    scale: float = field(default=1.0, metadata={"minimum": 0})  # 10 in ATM's generation loss
    # The contrastive terms:
    kind: str = field(default="info_nce", metadata={"choices": ("info_nce", "siglip")})
    # Which other rows of a batch are no negatives: the same picture, the same concept, or all are (none).
    positives: str = field(default="image", metadata={"choices": ("image", "concept", "none")})
    normalise_eeg: bool = True
    normalise_image: bool = True  # text, too
    # Logits are multiplied by exp(logit_scale), or by logit_scale as it is (ATM's code).
    logit_scale: str = field(default="exp", metadata={"choices": ("exp", "raw")})
    logit_scale_init: float = math.log(1 / 0.07)  # of the parameter itself; CLIP's and ATM's, 2.659
    logit_bias_init: float = -10.0  # siglip only (Zhai et al. 2023)
    learn_logit_scale: bool = True
