"""Shapes in signatures are checked under pytest (see conftest.py), and only there."""

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from eegrecon.losses.contrastive import info_nce

WRONG = (torch.zeros(2, 3), torch.zeros(2, 4), torch.tensor(0.0))


def test_a_wrong_shape_is_caught_at_the_call():
    with pytest.raises(TypeCheckError, match="image_embeds"):
        info_nce(*WRONG)


def test_users_pay_nothing_for_it():
    code = "import eegrecon.losses.contrastive, sys; assert 'beartype' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
