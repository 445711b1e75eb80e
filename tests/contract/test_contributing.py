"""Adding an encoder takes what CONTRIBUTING says: its example, one registry line, one YAML."""

import re
import sys
from pathlib import Path

import pytest
import torch

import eegrecon
from eegrecon import config
from eegrecon.config import Choice, load
from eegrecon.registry import resolve
from eegrecon.stages import train_encoder
from tests.builders import build_tiny_set

ROOT = Path(__file__).parents[2]
SMALL = "{accelerator: cpu, devices: 1, max_epochs: 2, enable_progress_bar: false, num_sanity_val_steps: 0}"


@pytest.mark.usefixtures("clean_rank")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_example_becomes_an_encoder(tmp_path, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 1
    source = re.sub(r"^  ", "", blocks[0], flags=re.MULTILINE)
    (tmp_path / "my_power.py").write_text(source)  # one file
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(config.ENCODERS, "power", "my_power:Power")  # one line
    yaml = tmp_path / "encoder.yaml"  # one YAML
    yaml.write_text(
        f"extends: {ROOT}/experiments/pocket/encoder.yaml\n"
        f"data: {{root: {tmp_path}, split: {{val_concepts: 4}}}}\n"
        "encoder: {name: power, args: {floor: 0.001}}\n"
        f"loader: {{batch_size: 16}}\ntrainer: {SMALL}\n"
    )
    build_tiny_set(tmp_path)
    train_encoder.run(load("train-encoder", None, yaml), directory=tmp_path / "run", command="test")
    network = eegrecon.load(tmp_path / "run")
    assert network.encoder.floor == 0.001
    assert network(torch.randn(2, 63, 250), torch.tensor([1, 2])).shape == (2, 256)
    assert resolve(config.ENCODERS, Choice("power"), n_chans=3, n_times=5, dim=2).floor == 1e-6
    sys.modules.pop("my_power")
