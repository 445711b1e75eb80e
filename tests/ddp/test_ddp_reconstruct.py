"""`reconstruct` by the command line with two processes makes the pictures and scores that one process makes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eegrecon.artifacts import load_embeds, read_manifest
from tests.builders import build_tiny_set
from tests.builders_runs import build_run
from tests.builders_sdxl import tiny_sdxl

ROOT = Path(__file__).parents[2]
# The real command line with coarse pixels for judges; Lightning starts its second process with the same script.
SCRIPT = """
import sys
from eegrecon.cli import main
from eegrecon.metrics.features import picture_tensor
from eegrecon.stages import evaluate, reconstruct

network = lambda pictures: picture_tensor(pictures, 4).flatten(1)
evaluate.load_judge = evaluate.load_target_space = lambda name: network
reconstruct.load_target_space = lambda name: lambda pictures: network(pictures).repeat(1, 6)[:, :256] - 0.5
sys.exit(main())
"""


def reconstruct(home, run, *overrides):
    script = home / "script.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if "RANK" not in name}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    generator = f"generator.args={{base: {home / 'sdxl'}, num_inference_steps: 2, size: 16}}"
    words = ["reconstruct", "--exp", "pocket", "--run", str(run), f"data.root={home / 'data'}", generator]
    words += ["data.split.val_concepts=2", "sample.num_inference_steps=2", "batch_size=2", "trainer.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, str(script), *words, *overrides],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return run / "reconstruct"


@pytest.mark.ddp
def test_two_processes_make_the_same_pictures(tmp_path):
    build_tiny_set(tmp_path / "data", test_concepts=5)  # odd: the ranks' shares differ
    tiny_sdxl(tmp_path / "sdxl", dim=256, conditioning={"model": "pocket_clip", "weights_tag": "tiny", "dim": 256})
    build_run(tmp_path / "data", tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    best = ["draws=2", "keep=best"]
    one = reconstruct(tmp_path, tmp_path / "one", *best)
    two = reconstruct(tmp_path, tmp_path / "two", *best, "batch_size=0", "trainer.devices=2", "trainer.strategy=ddp")
    assert read_manifest(two).world_size == 2
    for folder in ("pictures", "pictures_ceiling"):
        names = sorted(path.name for path in (one / folder).iterdir())
        assert names == sorted(path.name for path in (two / folder).iterdir())
        assert len(names) == 5 * 2
        for name in names:
            with Image.open(one / folder / name) as first, Image.open(two / folder / name) as second:
                difference = np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int))
            assert difference.max() <= 1
    chosen = [
        load_embeds(directory / "embeds" / "test.safetensors")["chosen_draw"].tolist() for directory in (one, two)
    ]
    assert chosen[0] == chosen[1]
    first, second = (json.loads((d / "metrics.json").read_text())["metrics"] for d in (one, two))
    assert set(first) == set(second)
    for name, entry in first.items():
        assert second[name]["value"] == pytest.approx(entry["value"], abs=0.01), name
