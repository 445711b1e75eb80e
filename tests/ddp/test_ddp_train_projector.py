"""`train-projector` by the command line with two processes, against one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from eegrecon.artifacts import read_manifest
from eegrecon.data.layout import projector_dir
from tests.builders import build_tiny_set, write_tokens

ROOT = Path(__file__).parents[2]


def train(root, *words):
    environment = {name: value for name, value in os.environ.items() if "RANK" not in name}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [
        sys.executable,
        "-m",
        "eegrecon",
        "train-projector",
        "--exp",
        "pocket_captions",
        f"data.root={root.parent}",
        *words,
    ]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.ddp
def test_two_processes_train_the_same_projector(tmp_path):
    root = build_tiny_set(tmp_path, train_concepts=12)
    trainer = "trainer={accelerator: cpu, max_epochs: 2, enable_progress_bar: false"
    small = ["tokens=git-tiny", "data.split.val_concepts=3", "batch_size=8", "optim.args.eps=0.001"]
    write_tokens(root)
    train(root, "name=one", *small, trainer + "}")
    train(root, "name=two", *small, trainer + ", devices: 2, strategy: ddp}")
    one, two = (projector_dir(root, name) for name in ("one", "two"))
    assert (read_manifest(one).world_size, read_manifest(two).world_size) == (1, 2)
    assert read_manifest(one).metrics == pytest.approx(read_manifest(two).metrics, rel=1e-4)
    states = [load_file(home / "model.safetensors") for home in (one, two)]
    for name, value in states[0].items():
        np.testing.assert_allclose(value, states[1][name], atol=1e-5, err_msg=name)
