"""Streams of random numbers that a data set draws from: each depends on a seed and a purpose, on nothing global."""

import numpy as np
import torch

# Keep apart what is drawn with one seed for different purposes; the shuffling of batches has none.
PERMUTATION = 0x5045524D  # of labels
GROUPS = 0x47525053  # of trials that are averaged
FORGET = 0x464F5247  # the subject, in training
LEVELS = 0x4C564C53  # of a target, in training
SHIFT = 0x53484654  # of training trials in time
DROP = 0x44524F50  # of their channels
NOISE = 0x4E4F4953  # on them
MIXUP = 0x4D495855  # of two of them


def generator_of(*numbers: int) -> torch.Generator:
    """A torch generator whose stream depends on all these numbers (each ≥ 0) and on their order and number."""
    seed = int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(seed)
