"""Every Make target is phony, listed by `make help`, and calls the verb of its name."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eegrecon.cli import SUMMARIES, UPSTREAM
from eegrecon.config import STAGES

ROOT = Path(__file__).resolve().parents[2]
TARGETS = [
    "setup", "download", "prepare-data", "extract-targets", "train-projector", "train-encoder", "train-prior",
    "train-low-level", "reconstruct", "evaluate", "sweep", "pocket-weights", "tensorboard",
    "test", "test-slow", "lint", "help", "clean",
]  # fmt: skip
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words: str) -> str:
    done = subprocess.run(["make", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_targets_are_exactly_these():
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert phony[1].split() == TARGETS
    assert set(STAGES) == set(SUMMARIES) == set(UPSTREAM)
    assert set(SUMMARIES) <= set(TARGETS)


def test_help_lists_all():
    listed = re.findall(r"^  (\S+) +\S", make("--no-print-directory", "help"), re.MULTILINE)
    assert sorted(listed) == sorted(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_runs_dry(target):
    assert make("-n", target).strip()


@pytest.mark.parametrize("verb", sorted(SUMMARIES))
def test_a_verb_calls_itself_from_the_venv(verb):
    text = make("-n", verb, "EXP=mine", "SUBJECT=3", "SEED=2", "RUN=/r", "ARGS=trainer.devices=2")
    call = next(line for line in text.splitlines() if "-m eegrecon" in line)
    assert call.startswith(f".venv/bin/python -m eegrecon {verb} ")
    assert call.endswith(" trainer.devices=2")
    trains = {"train-encoder", "train-prior", "train-low-level"}
    in_run = verb in {*trains, "reconstruct", "evaluate"}
    assert ("--seed 2 --run /r" in call) == in_run
    assert ("--exp pocket_weights" if verb == "pocket-weights" else "--exp mine") in call
    assert ("--subject 3" in call) == (in_run or verb == "prepare-data")
    assert ("--upstream" in call) == (verb in {*trains, "train-projector", "reconstruct"})


def test_continuous_integration_types_the_same_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert script.startswith("#!/usr/bin/env bash")
    assert "exec make test" in script
