"""The slow tier: the README's main command at full size, and stages killed without warning."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from eegrecon.artifacts import read_manifest
from tests.builders import build_tiny_set

pytestmark = pytest.mark.slow
EEGRECON = [sys.executable, "-m", "eegrecon"]


@pytest.mark.weights
@pytest.mark.timeout(1700)
def test_the_whole_pocket_set(tmp_path):
    words = ["reconstruct", "--exp", "pocket", "--upstream", "--run", f"{tmp_path}/run", f"data.root={tmp_path}/data"]
    assert subprocess.run([*EEGRECON, *words]).returncode == 0
    values = {
        name.removeprefix("test/"): entry["value"]
        for name, entry in json.loads((tmp_path / "run/reconstruct/metrics.json").read_text())["metrics"].items()
    }
    # Not what we hope for, but what would be a defect: chance where there is signal, or signal where there is none.
    assert values["retrieval_top1_200way"] > 0.15
    assert values["retrieval_top1_200way_ridge"] > 0.15
    assert values["two_way_efflite2_ceiling"] > values["two_way_efflite2_shuffled"]
    assert 0.41 <= values["two_way_efflite2_shuffled"] <= 0.59  # the 99 % binomial interval of chance at 200
    assert len(list((tmp_path / "run/reconstruct/pictures").rglob("*.png"))) == 200


@pytest.mark.timeout(600)
def test_an_encoder_killed_again_and_again_still_finishes(tmp_path):
    build_tiny_set(tmp_path / "data", train_concepts=16, exemplars=4)
    words = [
        *("train-encoder", "--exp", "pocket", "--run", f"{tmp_path}/run", f"data.root={tmp_path}/data"),
        *("data.split.val_concepts=4", "loader.batch_size=8", "trainer.accelerator=cpu", "trainer.max_epochs=40"),
    ]
    last = tmp_path / "run/encoder/checkpoints/last.ckpt"
    for _ in range(3):
        before = last.stat().st_mtime_ns if last.exists() else 0
        child = subprocess.Popen([*EEGRECON, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.time() + 120
        while child.poll() is None and time.time() < deadline:
            if last.exists() and last.stat().st_mtime_ns > before:
                break
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert not (tmp_path / "run/encoder/manifest.json").exists()
    assert subprocess.run([*EEGRECON, *words]).returncode == 0
    assert read_manifest(tmp_path / "run/encoder").stage == "train-encoder"
