"""Every command of the README exists, and every key it sets is known."""

import argparse
import importlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from PIL import Image

from eegrecon.cli import PLAIN_FILES, TOOLS
from eegrecon.config import STAGES, load
from eegrecon.data import THINGS_EEG2_CHANNELS
from tests.builders_runs import build_chain

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOOL_COMMANDS = sorted({line.split("#")[0].strip() for line in re.findall(r"^eegrecon .*$", README, re.MULTILINE)})
COMMANDS = sorted({line.split("#")[0].strip() for line in re.findall(r"^make .*$", README, re.MULTILINE)})


def test_there_are_commands():
    assert "make reconstruct" in COMMANDS
    assert "make test" in COMMANDS
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_make_knows_it_and_its_config_is_valid(command):
    words = shlex.split(command)
    dry = subprocess.run([words[0], "-n", "-o", ".venv/.ready", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    if words[1] in STAGES:
        given = dict(word.split("=", 1) for word in words[2:])
        subject = int(given["SUBJECT"]) if "SUBJECT" in given else None
        load(words[1], given.get("EXP", "pocket"), None, shlex.split(given.get("ARGS", "")), subject=subject)


@pytest.mark.parametrize("command", TOOL_COMMANDS)
def test_the_tools_take_these_arguments(command):
    words = shlex.split(command)
    plain = words[1] == "evaluate"  # of plain files; with a config it is a verb, which make calls
    assert words[1] in TOOLS or (plain and PLAIN_FILES in words)
    parser = argparse.ArgumentParser(exit_on_error=False)
    stage = "score_embeds" if plain else words[1].replace("-", "_")
    importlib.import_module(f"eegrecon.stages.{stage}").arguments(parser)
    parser.parse_args(words[2:])


def test_the_pipeline_is_used_as_the_readme_says(tmp_path, monkeypatch):
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "EEGToImagePipeline" in code)
    assert len([line for line in block.splitlines() if line.strip()]) == 4
    run = build_chain(tmp_path / "home")
    (tmp_path / "runs" / "pocket" / "sub-01").mkdir(parents=True)
    run.rename(tmp_path / "runs" / "pocket" / "sub-01" / "seed-0")
    volts = np.random.default_rng(0).normal(size=(2, 63, 301)) * 1e-6
    info = mne.create_info(list(THINGS_EEG2_CHANNELS), 250.0, "eeg")
    mne.EpochsArray(volts, info, tmin=-0.2, verbose=False).save(tmp_path / "mine-epo.fif", verbose=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    assert [len(pictures) for pictures in names["output"].images] == [1, 1]
    with Image.open("first.png") as picture:
        assert picture.size == (16, 16)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
