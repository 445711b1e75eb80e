"""What a prior is, how it is trained and how it is sampled: the blocks of `config_schema` for stage 2."""

from dataclasses import dataclass, field

from eegrecon.config_choice import Choice

# Networks that a diffusion trains: noisy embedding, timestep and condition in, one prediction out.
DENOISERS = {"unet": "eegrecon.models.priors.unet:PriorUNet"}
# Networks from the condition to one embedding: trained (mlp), fitted in closed form (ridge) or nothing at all (none).
REGRESSORS = {
    "mlp": "eegrecon.models.priors.mlp:PriorMLP",
    "ridge": "eegrecon.models.priors.linear:PriorRidge",
    "none": "eegrecon.models.priors.linear:NoPrior",
}
PRIORS = DENOISERS | REGRESSORS
# What a diffusion prior may be sampled with; each keeps the noise schedule that was trained on.
SCHEDULERS = {
    "ddpm": "diffusers:DDPMScheduler",  # ancestral, the paper's
    "ddim": "diffusers:DDIMScheduler",
    "dpm_solver_multistep": "diffusers:DPMSolverMultistepScheduler",  # DPM-Solver++, unless algorithm_type says else
    "dpm_solver_singlestep": "diffusers:DPMSolverSinglestepScheduler",
    "deis_multistep": "diffusers:DEISMultistepScheduler",
    "unipc_multistep": "diffusers:UniPCMultistepScheduler",
    "euler_discrete": "diffusers:EulerDiscreteScheduler",
    "euler_ancestral_discrete": "diffusers:EulerAncestralDiscreteScheduler",
    "heun_discrete": "diffusers:HeunDiscreteScheduler",
}


@dataclass(frozen=True)
class DiffusionConfig:
    """The prior's noise schedule and objective (diffusers' names).

    Of it, the prior mlp reads `target_scale`, `cond_scale`, `cond_noise` and `ema_decay`, ridge `target_scale` and
    `cond_scale`, none nothing: so that `prior.name=ridge` alone turns a diffusion experiment into its baseline.
    """

    prediction_type: str = field(default="epsilon", metadata={"choices": ("epsilon", "v_prediction", "sample")})
    num_train_timesteps: int = field(default=1000, metadata={"minimum": 1})
    # Not the cosine schedule with epsilon: its last step holds no signal, so a noise error divided by it explodes.
    beta_schedule: str = field(default="linear", metadata={"choices": ("linear", "scaled_linear", "squaredcos_cap_v2")})
    cond_drop: float = field(default=0.1, metadata={"minimum": 0, "maximum": 1})
    # Standard deviation of noise on the standardised condition in training, against exposure bias; 0: off.
    cond_noise: float = field(default=0.0, metadata={"minimum": 0})
    # Moving average of the weights per step; 0: off. If on, the average is validated and exported.
    ema_decay: float = field(default=0.0, metadata={"minimum": 0})
    # Clamp every denoised estimate to [-1, 1] while sampling, which diffusers and ATM's code do (made for pictures). Of
    # un-normalised CLIP vectors, whose values reach 13.6, it leaves a mean norm of 16.6 (of 22.4) and a cosine of 0.863
    # to the original (target_scale none, as there); of standardised ones 0.72 of the norm and a cosine of 0.95. It also
    # hides what `epsilon` gets wrong on few pairs (see experiments/pocket/prior.yaml). Needs scheduler ddpm or ddim.
    clip_sample: bool = False
    # Noise has variance 1 in each dimension. std: targets are centred and scaled to that as well, dimension by
    # dimension, and samples scaled back; none: as they are, as in ATM's code, which fits no CLIP vector (L2-normalised
    # ones drown, of others a few dimensions stand out; see `diffusion.scaled`).
    target_scale: str = field(default="std", metadata={"choices": ("std", "none")})
    # More pictures, without EEG, for the unconditional half: a target store of this set (NAME) or of another under
    # data.root (SET/NAME) in the same space as `target`; its training pictures are used, but for those of held-out
    # concepts. They take the places of `image_only_rate` of the rows of a batch, at random. "": none. They are kept in
    # memory. (ATM's paper adds over a million ImageNet pictures; its code none. The rate is not tuned.)
    image_only: str = ""
    image_only_rate: float = field(default=0.2, metadata={"minimum": 0, "maximum": 1})
    # "unit" reads only the direction of EEG embeddings: their length depends on how many trials were averaged.
    cond_scale: str = field(default="unit", metadata={"choices": ("unit", "std")})


@dataclass(frozen=True)
class RegressionConfig:
    """What the prior mlp minimises: `mse` per standardised dimension plus `cosine` (1 - cosine to the target itself).

    The prior ridge is the closed form of the mse alone.
    """

    mse: float = field(default=1.0, metadata={"minimum": 0})
    cosine: float = field(default=0.0, metadata={"minimum": 0})


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over steps: linear warm-up, then constant or a cosine to zero."""

    name: str = field(default="constant", metadata={"choices": ("constant", "cosine")})
    warmup_steps: int = field(default=0, metadata={"minimum": 0})


@dataclass(frozen=True)
class SampleConfig:
    """How a diffusion prior is sampled; the others give one embedding a condition and read nothing of it.

    `guidance_scale` is diffusers' g, `prediction = uncond + g * (cond - uncond)`: 0 unconditional, 1 conditional. ATM's
    paper writes `(1 + w) * cond - w * uncond`, so **g = w + 1**: its code's 5.0 is the paper's w = 4.
    """

    guidance_scale: float = field(default=2.0, metadata={"minimum": 0})
    num_inference_steps: int = field(default=50, metadata={"minimum": 1})
    # `args` are the constructor's (solver_order, algorithm_type: sde-dpmsolver++, …) and DDIM's eta.
    scheduler: Choice = field(default_factory=lambda: Choice(name="ddpm"), metadata={"registry": SCHEDULERS})
