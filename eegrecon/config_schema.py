"""The dataclasses that every experiment YAML is checked against, and the registries of names.

One dataclass per stage; each default lives here and nowhere else. A field's `metadata` may hold `registry` (allowed
names of a `Choice`), `choices` (allowed values), `minimum` and `maximum`; `config.load` checks them without torch.
The registries map a name to `"module:attribute"`, a string, so that a typo is found before anything heavy is imported.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

ENCODERS = {
    "atm_s": "eegrecon.models.encoders.atm_s:ATMS",
    "ridge": "eegrecon.models.encoders.ridge:Ridge",
}
LATENT_HEADS = {"mlp": "eegrecon.models.latent_head:LatentHead"}
PRIORS = {"unet": "eegrecon.models.priors.unet:PriorUNet"}
GENERATORS = {"sdxl": "eegrecon.models.generators.sdxl:SDXLGenerator"}
OPTIMS = {"adamw": "torch.optim:AdamW", "adam": "torch.optim:Adam"}
TARGET_MODELS = {
    "pocket_clip": "eegrecon.models.vision:load_pocket_clip",
    "open_clip": "eegrecon.models.vision:load_open_clip",
    "sdxl_vae": "eegrecon.models.generators.latents:load_vae",
}


@dataclass(frozen=True)
class Choice:
    """One thing chosen by name from a registry, with its constructor's arguments."""

    name: str = MISSING
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitConfig:
    """How many training concepts validation holds out, and with which seed (never the run's `seed`)."""

    val_concepts: int = field(default=MISSING, metadata={"minimum": 0})
    split_seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """Which trials a training stage sees; `window` is seconds from picture onset."""

    set: str = MISSING
    root: str = "data"
    subjects: list[int] = field(default_factory=lambda: MISSING)
    protocol: str = field(default="within_subject", metadata={"choices": ("within_subject",)})
    # Training only: validation and test trials are always averaged over repetitions.
    repetitions: str = field(default="each", metadata={"choices": ("each", "average")})
    window: list[float] = field(default_factory=lambda: [0.0, 1.0])
    channels: Any = "all"  # "all" or a list of channel names
    split: SplitConfig = field(default_factory=SplitConfig)


@dataclass(frozen=True)
class SetConfig:
    """Where a set lives: `<root>/<set>/`."""

    set: str = MISSING
    root: str = "data"


@dataclass(frozen=True)
class SubjectsConfig(SetConfig):
    """A set and the subjects to make."""

    subjects: list[int] = field(default_factory=lambda: MISSING)


@dataclass(frozen=True)
class TargetConfig:
    """A target store by name (empty: none); `l2_normalise` is the reader's option, stores hold raw vectors."""

    name: str = MISSING
    l2_normalise: bool = False


@dataclass(frozen=True)
class LoaderConfig:
    """Loader settings; `batch_size` counts rows over all processes together."""

    batch_size: int = field(default=MISSING, metadata={"minimum": 1})
    num_workers: int = field(default=0, metadata={"minimum": 0})


@dataclass(frozen=True)
class SelectConfig:
    """Which checkpoint becomes `model.safetensors`."""

    monitor: str = MISSING
    mode: str = field(default="max", metadata={"choices": ("max", "min")})


@dataclass(frozen=True)
class PicturesConfig:
    """The pocket pictures: `train_concepts` 0 takes all there are; `size` in pixels."""

    train_concepts: int = field(default=0, metadata={"minimum": 0})
    test_concepts: int = field(default=200, metadata={"minimum": 1})
    exemplars: int = field(default=10, metadata={"minimum": 1})
    size: int = field(default=128, metadata={"minimum": 8})
    seed: int = 0


@dataclass(frozen=True)
class BrainConfig:
    """The simulated brain; `gain` scales the picture-driven part (frozen in the experiment's prepare-data.yaml)."""

    gain: float = MISSING
    train_repetitions: int = field(default=4, metadata={"minimum": 1})
    test_repetitions: int = field(default=80, metadata={"minimum": 1})


@dataclass(frozen=True)
class TargetSpec:
    """One target store to make."""

    kind: str = field(default=MISSING, metadata={"choices": ("image", "vae_latent", "text")})
    model: Choice = field(default_factory=Choice, metadata={"registry": TARGET_MODELS})
    batch_size: int = field(default=64, metadata={"minimum": 1})


@dataclass(frozen=True)
class LossConfig:
    """Weights of the encoder's three loss terms."""

    contrastive: float = field(default=MISSING, metadata={"minimum": 0})
    mse: float = field(default=MISSING, metadata={"minimum": 0})
    vae_latent: float = field(default=0.0, metadata={"minimum": 0})


@dataclass(frozen=True)
class DiffusionConfig:
    """The prior's noise schedule and objective (diffusers' names)."""

    prediction_type: str = field(default="epsilon", metadata={"choices": ("epsilon", "v_prediction", "sample")})
    num_train_timesteps: int = field(default=1000, metadata={"minimum": 1})
    # Not the cosine schedule with epsilon: its last step holds no signal, so a noise error divided by it explodes.
    beta_schedule: str = field(default="linear", metadata={"choices": ("linear", "scaled_linear", "squaredcos_cap_v2")})
    cond_drop: float = field(default=0.1, metadata={"minimum": 0, "maximum": 1})
    # Standard deviation of noise on the standardised condition in training, against exposure bias; 0: off.
    cond_noise: float = field(default=0.0, metadata={"minimum": 0})
    # Moving average of the weights per step; 0: off. If on, the average is validated and exported.
    ema_decay: float = field(default=0.0, metadata={"minimum": 0})
    target_scale: str = field(default="std", metadata={"choices": ("std", "none")})
    # "unit" reads only the direction of EEG embeddings: their length depends on how many trials were averaged.
    cond_scale: str = field(default="unit", metadata={"choices": ("unit", "std")})


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over steps: linear warm-up, then constant or a cosine to zero."""

    name: str = field(default="constant", metadata={"choices": ("constant", "cosine")})
    warmup_steps: int = field(default=0, metadata={"minimum": 0})


@dataclass(frozen=True)
class SampleConfig:
    """How the prior is sampled."""

    guidance_scale: float = field(default=2.0, metadata={"minimum": 0})
    num_inference_steps: int = field(default=50, metadata={"minimum": 1})


@dataclass(frozen=True)
class PrepareDataConfig:
    """`prepare-data`: pictures and trial stores."""

    data: SubjectsConfig = field(default_factory=SubjectsConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    brain: BrainConfig = field(default_factory=BrainConfig)
    seed: int = 0


@dataclass(frozen=True)
class ExtractTargetsConfig:
    """`extract-targets`: target stores by name."""

    data: SetConfig = field(default_factory=SetConfig)
    targets: dict[str, TargetSpec] = field(default_factory=lambda: MISSING)
    seed: int = 0


@dataclass(frozen=True)
class TrainEncoderConfig:
    """`train-encoder`: stage 1, EEG to EEG embedding."""

    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    latent_target: TargetConfig = field(default_factory=lambda: TargetConfig(name=""))
    encoder: Choice = field(default_factory=Choice, metadata={"registry": ENCODERS})
    latent_head: Choice = field(default_factory=lambda: Choice(name="mlp"), metadata={"registry": LATENT_HEADS})
    loss: LossConfig = field(default_factory=LossConfig)
    optim: Choice = field(default_factory=Choice, metadata={"registry": OPTIMS})
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    baseline_ridge: bool = True
    # The control: pictures re-assigned among training and validation images by a seeded permutation.
    permute_labels: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class TrainPriorConfig:
    """`train-prior`: stage 2, EEG embedding to image embedding."""

    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    prior: Choice = field(default_factory=Choice, metadata={"registry": PRIORS})
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    optim: Choice = field(default_factory=Choice, metadata={"registry": OPTIMS})
    lr_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class ReconstructConfig:
    """`reconstruct`: stage 3, embeddings to pictures, and their scores."""

    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    generator: Choice = field(default_factory=Choice, metadata={"registry": GENERATORS})
    draws: int = field(default=1, metadata={"minimum": 1})
    batch_size: int = field(default=MISSING, metadata={"minimum": 1})
    judge: str = field(default="efflite2", metadata={"choices": ("efflite2",)})
    permuted_run: str = ""  # run directory of the permuted-label control (empty: not reported)
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class EvaluateConfig:
    """`evaluate`: scores finished reconstructions again."""

    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    judge: str = field(default="efflite2", metadata={"choices": ("efflite2",)})
    permuted_run: str = ""
    seed: int = 0


@dataclass(frozen=True)
class StepsConfig:
    """One part of `pocket-weights`: how long and how fast it trains."""

    steps: int = field(default=MISSING, metadata={"minimum": 1})
    batch_size: int = field(default=MISSING, metadata={"minimum": 1})
    lr: float = field(default=MISSING, metadata={"minimum": 0})


@dataclass(frozen=True)
class PocketWeightsConfig:
    """`pocket-weights`: train what the package ships (heads, autoencoder, denoiser)."""

    split: SplitConfig = field(default_factory=SplitConfig)  # the held-out concepts that no weight may see
    scenes: int = field(default=MISSING, metadata={"minimum": 1})  # per drawing
    keep_features: float = field(default=1.0, metadata={"minimum": 0})
    embed_noise: float = field(default=0.1, metadata={"minimum": 0})
    heads: StepsConfig = field(default_factory=StepsConfig)
    autoencoder: StepsConfig = field(default_factory=StepsConfig)
    denoiser: StepsConfig = field(default_factory=StepsConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class StageSpec:
    """A verb of the command line: its schema, its YAML in an experiment folder and its directory in a run."""

    schema: type
    yaml: str
    folder: str | None  # None: the stage writes into `<root>/<set>/`, not into a run


STAGES = {
    "prepare-data": StageSpec(PrepareDataConfig, "prepare-data.yaml", None),
    "extract-targets": StageSpec(ExtractTargetsConfig, "extract-targets.yaml", None),
    "train-encoder": StageSpec(TrainEncoderConfig, "encoder.yaml", "encoder"),
    "train-prior": StageSpec(TrainPriorConfig, "prior.yaml", "prior"),
    "reconstruct": StageSpec(ReconstructConfig, "reconstruct.yaml", "reconstruct"),
    "evaluate": StageSpec(EvaluateConfig, "evaluate.yaml", "evaluate"),
    "pocket-weights": StageSpec(PocketWeightsConfig, "weights.yaml", "weights"),
}
