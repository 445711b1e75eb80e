"""Randomness that survives a restart."""

import hashlib

import lightning
import torch


class EpochSeed(lightning.Callback):
    """Seeds torch at the start of every training epoch from (seed, epoch, rank).

    Dropout and anything else that draws from torch's global generator then depends on the epoch and not on what ran
    before, so that a run resumed from an epoch's checkpoint continues exactly as the uninterrupted one would have.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Seeds this epoch."""
        torch.manual_seed(epoch_seed(self.seed, trainer.current_epoch, trainer.global_rank))


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed for one rank's epoch, 63 bits, the same on every machine.

    >>> epoch_seed(0, 1, 0) == epoch_seed(0, 1, 0) != epoch_seed(0, 0, 1)
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{rank}".encode()).digest()[:8], "big") >> 1
