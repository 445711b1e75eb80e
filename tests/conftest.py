"""What every test shares: one thread, no display, and tiers that are skipped aloud."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_weights = pytest.mark.skip(reason="the pocket checkpoints are not there: make pocket-weights")
    have_weights = any((ROOT / "eegrecon" / "pocket" / "weights").rglob("*.safetensors"))
    skip_gpu = pytest.mark.skip(reason="there is no GPU here")
    have_gpu = None
    for item in items:
        if item.get_closest_marker("weights") is not None and not have_weights:
            item.add_marker(skip_weights)
        if item.get_closest_marker("gpu") is not None:
            if have_gpu is None:
                import torch

                have_gpu = torch.cuda.is_available()
            if not have_gpu:
                item.add_marker(skip_gpu)


@pytest.fixture
def clean_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """No distributed run around the test."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
