"""What every test shares: one thread, no display, shapes checked, and tiers that are skipped aloud."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook finds it by name)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# Annotated shapes and dtypes are checked at every call: here only, users pay nothing for it.
CHECKED = ["diffusion", "losses", "metrics.functional", "models.encoders", "models.latent_head", "models.priors"]
CHECKED += ["models.low_level"]
install_import_hook([f"eegrecon.{name}" for name in CHECKED], "tests.typecheck.check")

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
