"""`train-encoder` by the command line with two processes, against one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from eegrecon.artifacts import load_embeds, read_manifest
from tests.builders import build_tiny_set

ROOT = Path(__file__).parents[2]
# A large eps: Adam would turn the rounding noise of gradients that are zero into steps of full size.
SMALL = [
    "data.split.val_concepts=3",
    "loader.batch_size=8",
    "encoder.args={dropout: 0.0, conv_dropout: 0.0, head_dropout: 0.0}",
    "latent_head.args={dropout: 0.0}",
    "baseline_ridge=false",
    "optim={name: adamw, args: {lr: 1.0e-4, eps: 1.0e-3}}",
    "trainer={accelerator: cpu, devices: 1, max_epochs: 2, enable_progress_bar: false, num_sanity_val_steps: 0}",
]


def train(data, run, *overrides):
    environment = {name: value for name, value in os.environ.items() if "RANK" not in name}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "eegrecon", "train-encoder", "--exp", "pocket", "--run", str(run)]
    done = subprocess.run(
        [*words, f"data.root={data}", *SMALL, *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return read_manifest(run / "encoder")


@pytest.mark.ddp
def test_two_processes_train_the_same_encoder(tmp_path):
    build_tiny_set(tmp_path / "data", train_concepts=10, exemplars=3)
    one = train(tmp_path / "data", tmp_path / "one", "cross_fit=2")
    two = train(tmp_path / "data", tmp_path / "two", "cross_fit=2", "trainer.devices=2", "trainer.strategy=ddp")
    assert (one.world_size, two.world_size) == (1, 2)
    assert one.selection["epoch"] == two.selection["epoch"]
    folds = [[fold["epoch"] for fold in run.selection["cross_fit"]["selected"]] for run in (one, two)]
    assert folds[0] == folds[1]
    assert not (tmp_path / "two" / "encoder" / "folds").exists()
    scores = [{name: v for name, v in run.metrics.items() if "per_second" not in name} for run in (one, two)]
    assert scores[0] == pytest.approx(scores[1])
    assert "val/retrieval_top1_3way" in scores[0]
    states = [load_file(tmp_path / name / "encoder" / "model.safetensors") for name in ("one", "two")]
    for name, value in states[0].items():
        np.testing.assert_allclose(value, states[1][name], atol=1e-5, err_msg=name)
    for part, atol in (("train", 1e-3), ("val", 1e-3), ("train_cross_fitted", 1e-3)):
        rows = [load_embeds(tmp_path / n / "encoder" / "embeds" / f"{part}.safetensors") for n in ("one", "two")]
        np.testing.assert_allclose(rows[0]["eeg_embeds"], rows[1]["eeg_embeds"], atol=atol)
