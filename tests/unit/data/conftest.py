import shutil
from pathlib import Path

import pytest

from tests.builders import build_tiny_set


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny set to read from; never change it."""
    return build_tiny_set(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_set(tiny_set: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_set, tmp_path / "pocket"))
