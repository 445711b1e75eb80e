"""The dataclasses that every experiment YAML is checked against, and the registries of names.

One dataclass per stage; each default lives here and nowhere else. A field's `metadata` may hold `registry` (allowed
names of a `Choice`), `choices` (allowed values), `minimum` and `maximum`; `config.load` checks them without torch.
The registries map a name to `"module:attribute"`, a string, so that a typo is found before anything heavy is imported.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from eegrecon.config_choice import Choice
from eegrecon.config_low_level import LOW_LEVEL, LowLevelLossConfig
from eegrecon.config_objective import LossConfig, TargetConfig
from eegrecon.config_pathways import PathwaysConfig
from eegrecon.config_prior import PRIORS, DiffusionConfig, RegressionConfig, SampleConfig, ScheduleConfig
from eegrecon.config_targets import TargetSpec
from eegrecon.config_training import AugmentConfig, InitConfig, LoaderConfig, SelectConfig

ENCODERS = {
    "atm_s": "eegrecon.models.encoders.atm_s:ATMS",
    "atm_e": "eegrecon.models.encoders.atm_e:ATME",
    "nice": "eegrecon.models.encoders.nice:NICE",
    "eeg_project": "eegrecon.models.encoders.eeg_project:EEGProject",
    "enigma": "eegrecon.models.encoders.enigma:Enigma",
    "mlp": "eegrecon.models.encoders.mlp:MLP",
    "eegnet": "eegrecon.models.encoders.eegnet:EEGNetV4",
    "shallow_fbcsp": "eegrecon.models.encoders.shallow_fbcsp:ShallowFBCSPNet",
    "eeg_conformer": "eegrecon.models.encoders.eeg_conformer:EEGConformer",
    "braindecode": "eegrecon.models.encoders.braindecode:Braindecode",  # an optional package
    "ridge": "eegrecon.models.encoders.ridge:Ridge",
}
LATENT_HEADS = {"mlp": "eegrecon.models.latent_head:LatentHead"}
IMAGE_PROJECTIONS = {
    "none": "eegrecon.models.image_projection:no_projection",
    "linear": "eegrecon.models.image_projection:LinearProjection",
    "mlp": "eegrecon.models.image_projection:MLPProjection",
}
GENERATORS = {"sdxl": "eegrecon.models.generators.sdxl:SDXLGenerator"}
# Whose trials train and whose are tested: see `DataConfig`.
PROTOCOLS = ("within_subject", "leave_one_subject_out", "joint")
REGIONS = ("frontal", "central", "parietal", "temporal", "occipital")
OPTIMS = {"adamw": "torch.optim:AdamW", "adam": "torch.optim:Adam"}
# What `prepare-data` makes trial stores from: the simulated brain, or one subject's files in a published layout
# (built with subject=, images=, work=; see `eegrecon.data.sources`).
SOURCES = {
    "pocket": "eegrecon.pocket.brain:simulate_subject",
    "preprocessed": "eegrecon.data.things_eeg2:preprocessed",
    "original": "eegrecon.data.things_eeg2:original",
    "pt": "eegrecon.data.things_eeg2:pt",
    "raw": "eegrecon.data.raw_sessions:RawSource",
    "meg_fif": "eegrecon.data.things_meg:meg_fif",
    "meg_pkl": "eegrecon.data.things_meg:meg_pkl",
}


@dataclass(frozen=True)
class SplitConfig:
    """How many training concepts validation holds out, and with which seed (never the run's `seed`)."""

    val_concepts: int = field(default=MISSING, metadata={"minimum": 0})
    split_seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """Which trials a stage sees; `window` is seconds from picture onset.

    Validation is always held-out concepts of the subjects trained on; test trials are opened by `reconstruct` and
    `evaluate` alone.

    - `within_subject`: one subject is trained on and tested.
    - `leave_one_subject_out`: `subjects` but `test_subject` are trained on, `test_subject` is tested.
    - `joint`: all `subjects` are trained on; `reconstruct` and `evaluate` test one of them, `test_subject`.

    `--subject N` is the subject that is tested: `subjects=[N]` within a subject, `test_subject=N` elsewhere.
    """

    set: str = MISSING
    root: str = "data"
    subjects: list[int] = field(default_factory=lambda: MISSING)
    protocol: str = field(default="within_subject", metadata={"choices": PROTOCOLS})
    test_subject: int | None = None
    # Training rows: each trial, the average over a picture's trials, or over k of them ({average: k}: other random
    # groups every epoch). Validation and test trials are always averaged.
    repetitions: Any = "each"
    # Which trials there are for this stage, training or test: recording sessions, and repetitions (a list of numbers
    # from 0, or k for the first k).
    sessions: Any = "all"
    keep_repetitions: Any = "all"
    # Of each subject's training trials, only so many minutes (null: all): a short calibration; see `data.budget`.
    keep_minutes: float | None = None
    seconds_per_trial: float = field(default=0.2, metadata={"minimum": 0.001})  # THINGS-EEG2: onset to onset
    window: list[float] = field(default_factory=lambda: [0.0, 1.0])
    channels: Any = "all"  # "all", a list of channel names, or {region: one or more of REGIONS}
    split: SplitConfig = field(default_factory=SplitConfig)

    @property
    def training_subjects(self) -> list[int]:
        """Whose trials train and validate."""
        left_out = self.test_subject if self.protocol == "leave_one_subject_out" else None
        return [subject for subject in self.subjects if subject != left_out]

    @property
    def tested_subject(self) -> int | None:
        """Whose test trials `reconstruct` opens; None: not named yet."""
        return self.subjects[0] if self.protocol == "within_subject" else self.test_subject

    @property
    def tested_suffix(self) -> str:
        """What a joint run, tested on one subject after another, adds to the folders of what is tested: -sub-08."""
        several = self.protocol == "joint" and self.test_subject is not None
        return f"-sub-{self.test_subject:02d}" if several else ""


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

    gain: float = 0.0  # no default: the source pocket refuses 0, the other sources have no brain
    train_repetitions: int = field(default=4, metadata={"minimum": 1})
    test_repetitions: int = field(default=80, metadata={"minimum": 1})


@dataclass(frozen=True)
class HardwareConfig:
    """What a stage without a Trainer computes on; `devices` -1 takes all GPUs."""

    accelerator: str = field(default="auto", metadata={"choices": ("auto", "cpu", "gpu")})
    devices: int = field(default=1, metadata={"minimum": -1})


@dataclass(frozen=True)
class PrepareDataConfig:
    """`prepare-data`: pictures and trial stores."""

    data: SubjectsConfig = field(default_factory=SubjectsConfig)
    source: Choice = field(default_factory=lambda: Choice(name="pocket"), metadata={"registry": SOURCES})
    # Of the source pocket alone:
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    brain: BrainConfig = field(default_factory=BrainConfig)
    seed: int = 0


@dataclass(frozen=True)
class ExtractTargetsConfig:
    """`extract-targets`: target stores by name."""

    data: SetConfig = field(default_factory=SetConfig)
    targets: dict[str, TargetSpec] = field(default_factory=lambda: MISSING)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    seed: int = 0


@dataclass(frozen=True)
class TrainEncoderConfig:
    """`train-encoder`: stage 1, EEG to EEG embedding."""

    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    text_target: TargetConfig = field(default_factory=lambda: TargetConfig(name=""))
    latent_target: TargetConfig = field(default_factory=lambda: TargetConfig(name=""))
    # Flattened and appended to the image embedding: one longer vector, in the galleries as well.
    fusion_targets: list[TargetConfig] = field(default_factory=list)
    # From the (fused) image embedding to the space that is shared with the EEG, learned; none: they are one space.
    image_projection: Choice = field(
        default_factory=lambda: Choice(name="none"), metadata={"registry": IMAGE_PROJECTIONS}
    )
    encoder: Choice = field(default_factory=Choice, metadata={"registry": ENCODERS})
    latent_head: Choice = field(default_factory=lambda: Choice(name="mlp"), metadata={"registry": LATENT_HEADS})
    loss: LossConfig = field(default_factory=LossConfig)
    # A training row forgets whose it is (subject 0) with this probability: that trains what unknown subjects get.
    subject_dropout: float = field(default=0.0, metadata={"minimum": 0, "maximum": 1})
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    init: InitConfig = field(default_factory=InitConfig)
    # Moving average of the weights per step; 0: off. If on, the average is validated and exported.
    ema_decay: float = field(default=0.0, metadata={"minimum": 0, "maximum": 0.99999})
    compile: bool = False  # torch.compile of the network
    optim: Choice = field(default_factory=Choice, metadata={"registry": OPTIMS})
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    # Channels to mean 0 and standard deviation 1 over the training trials; false: as the store holds them (ATM's code).
    standardise_eeg: bool = True
    # The linear baseline: ridge beside the encoder, on means over so many consecutive samples.
    baseline_ridge: bool = True
    baseline_samples_per_bin: int = field(default=1, metadata={"minimum": 1})
    # K: train K more encoders, each without one of K groups of training concepts, to embed that group's training rows;
    # what `train-prior` reads with `embeds: cross_fitted`. K + 1 times the training. 0: none.
    cross_fit: int = field(default=0, metadata={"minimum": 0})
    # The control: pictures re-assigned among training and validation images by a seeded permutation.
    permute_labels: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class TrainPriorConfig:
    """`train-prior`: stage 2, EEG embedding to image embedding."""

    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    # The training rows' EEG embeddings: of the encoder that trained on them, or of those that did not (`cross_fit` of
    # train-encoder). Validation's are always those of the encoder itself.
    embeds: str = field(default="in_sample", metadata={"choices": ("in_sample", "cross_fitted")})
    prior: Choice = field(default_factory=Choice, metadata={"registry": PRIORS})
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    optim: Choice = field(default_factory=Choice, metadata={"registry": OPTIMS})
    lr_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class TrainLowLevelConfig:
    """`train-low-level`: the low-level pathway, EEG to the VAE latent of the picture (an img2img start)."""

    data: DataConfig = field(default_factory=DataConfig)
    latent_target: TargetConfig = field(default_factory=TargetConfig)
    network: Choice = field(default_factory=Choice, metadata={"registry": LOW_LEVEL})
    # std: the network predicts how a latent differs from the training pictures' mean, in units of each latent channel's
    # standard deviation; none: latents as they are (the paper). The loss is taken between scaled latents in any case.
    target_scale: str = field(default="std", metadata={"choices": ("std", "none")})
    loss: LowLevelLossConfig = field(default_factory=LowLevelLossConfig)
    # Whose autoencoder decodes latents for the scores of pictures (and for loss.image): "pocket", an SDXL pipeline
    # folder or a fetched repository, as in the target's model.args.base; "": pictures are not scored.
    vae: str = ""
    # Predictions vary less than latents do. true: stretch them around the mean latent until they vary as much, by one
    # factor a latent channel, measured on the validation pictures.
    match_variance: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    ema_decay: float = field(default=0.0, metadata={"minimum": 0, "maximum": 0.99999})  # as in train-encoder
    optim: Choice = field(default_factory=Choice, metadata={"registry": OPTIMS})
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    permute_labels: bool = False  # the control, as in train-encoder
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class PicturesOnlyConfig(SetConfig):
    """A set and which of its training concepts are held out: for what is trained on pictures alone."""

    split: SplitConfig = field(default_factory=SplitConfig)


@dataclass(frozen=True)
class TrainProjectorConfig:
    """`train-projector`: image embedding to a captioner's visual tokens, from pictures alone."""

    data: PicturesOnlyConfig = field(default_factory=PicturesOnlyConfig)
    name: str = MISSING  # the folder `<root>/<set>/projectors/<name>`
    target: TargetConfig = field(default_factory=TargetConfig)  # image embeddings, as the prior makes them
    tokens: str = MISSING  # a store of kind layer that the model `git` made
    optim: Choice = field(default_factory=Choice, metadata={"registry": OPTIMS})
    batch_size: int = field(default=32, metadata={"minimum": 1})
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class ReconstructConfig:
    """`reconstruct`: stage 3, embeddings to pictures, and their scores."""

    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    # A text store: the names of the test concepts, among which trials are classified (empty: not reported).
    text_target: TargetConfig = field(default_factory=lambda: TargetConfig(name=""))
    # val: pictures of held-out training concepts, one a concept, into a folder of their own (`reconstruct-val`): what
    # settings are chosen on. Only test opens test trials.
    part: str = field(default="test", metadata={"choices": ("test", "val")})
    # The seen pictures' latents, for the ceiling of a low-level pathway.
    latent_target: TargetConfig = field(default_factory=lambda: TargetConfig(name=""))
    pathways: PathwaysConfig = field(default_factory=PathwaysConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    generator: Choice = field(default_factory=Choice, metadata={"registry": GENERATORS})
    draws: int = field(default=1, metadata={"minimum": 1})
    # What is scored of several draws: "all" averages their scores; "best" takes the draw whose picture, embedded again,
    # is most like the embedding it was made from, which looks at nothing that was seen. All stay on disk.
    keep: str = field(default="all", metadata={"choices": ("all", "best")})
    # Pictures made together, over all processes; 0: as many as fit into the free memory of each device, by an estimate.
    # No picture depends on it, beyond 1/255 a pixel.
    batch_size: int = field(default=MISSING, metadata={"minimum": 0})
    judge: str = field(default="efflite2", metadata={"choices": ("efflite2",)})
    permuted_run: str = ""  # run directory of the permuted-label control (empty: not reported)
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class EvaluateConfig:
    """`evaluate`: scores an encoder on the test trials and, with `pictures`, finished reconstructions again."""

    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    fusion_targets: list[TargetConfig] = field(default_factory=list)  # as the encoder was trained with
    # False: only the encoder is needed, and its embeddings of the test trials are made and scored here.
    pictures: bool = True
    # A text store: the names of the test concepts, among which trials are classified (empty: not reported).
    text_target: TargetConfig = field(default_factory=lambda: TargetConfig(name=""))
    # Without pictures: also score the mean of each picture's first k trials, for these k.
    averaging_curve: list[int] = field(default_factory=list)
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
    """`pocket-weights`: train what the package ships (heads, autoencoder, captioner, denoiser)."""

    split: SplitConfig = field(default_factory=SplitConfig)  # the held-out concepts that no weight may see
    scenes: int = field(default=MISSING, metadata={"minimum": 1})  # per drawing
    keep_features: float = field(default=1.0, metadata={"minimum": 0})
    embed_noise: float = field(default=0.1, metadata={"minimum": 0})
    caption_scenes: int = field(default=24, metadata={"minimum": 0})  # per drawing, with tokens of their quarters
    extra_words: int = field(default=6000, metadata={"minimum": 0})  # of the text tower, beside those of the titles
    heads: StepsConfig = field(default_factory=StepsConfig)
    autoencoder: StepsConfig = field(default_factory=StepsConfig)
    captioner: StepsConfig = field(default_factory=StepsConfig)
    denoiser: StepsConfig = field(default_factory=StepsConfig)  # UNet and IP-Adapter
    text: StepsConfig = field(default_factory=StepsConfig)  # the text tower learns to speak like the IP-Adapter
    captioned: StepsConfig = field(default_factory=StepsConfig)  # tower and text attention, taught by the UNet
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
    "train-projector": StageSpec(TrainProjectorConfig, "projector.yaml", None),
    "train-encoder": StageSpec(TrainEncoderConfig, "encoder.yaml", "encoder"),
    "train-prior": StageSpec(TrainPriorConfig, "prior.yaml", "prior"),
    "train-low-level": StageSpec(TrainLowLevelConfig, "low-level.yaml", "low_level"),
    "reconstruct": StageSpec(ReconstructConfig, "reconstruct.yaml", "reconstruct"),
    "evaluate": StageSpec(EvaluateConfig, "evaluate.yaml", "evaluate"),
    "pocket-weights": StageSpec(PocketWeightsConfig, "weights.yaml", "weights"),
}
