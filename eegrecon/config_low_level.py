"""The low-level pathway, EEG to VAE latents: its networks and its loss, blocks of `config_schema`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

# Networks from a trial to latents of pictures: `forward(eeg, subject) -> (b, *latent_shape)`.
LOW_LEVEL = {
    "upsampling": "eegrecon.models.low_level.upsampling:UpSampling",  # the paper's
    "separable": "eegrecon.models.low_level.separable:Separable",
    "ridge": "eegrecon.models.low_level.ridge:RidgeLatents",  # closed form
}


@dataclass(frozen=True)
class LowLevelLossConfig:
    """What is minimised between predicted and true latents, both times the VAE's scaling_factor: a weighted sum.

    The paper writes MSE, its code takes L1 (facts/atm.md section 11).
    """

    l1: float = field(default=MISSING, metadata={"minimum": 0})
    mse: float = field(default=MISSING, metadata={"minimum": 0})
    # Mean squared difference of the pictures that `vae` decodes from both, in [0, 1]. An experiment: it keeps the
    # decoder's activations of every picture of a batch, 14 to 20 MB each at 64 pixels (see experiments/LOG.md).
    image: float = field(default=0.0, metadata={"minimum": 0})
