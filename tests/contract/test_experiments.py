"""Everything shipped is executed: every experiment YAML, found recursively, loads through its stage's schema."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

from eegrecon import config

ROOT = config.experiments_root()
FILES = sorted(ROOT.rglob("*.yaml"))
STAGE_OF = {spec.yaml: stage for stage, spec in config.STAGES.items()}
# Experiments that run the whole chain.
CHAINS = ("pocket", "pocket_permuted")
HEADER = ("command: make ", "hardware: ", "expected: ")


def test_all_of_them_are_found():
    # A new experiment raises this number on purpose: a YAML that no test reads is a YAML that is wrong.
    assert len(FILES) == 19
    things = ["things_eeg2/atm_s", "things_meg/atm_s"]
    assert config.list_experiments() == ["pocket", "pocket_permuted", "pocket_weights", *things]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_loads_through_its_schema(path: Path):
    stage = STAGE_OF[path.name]  # a KeyError: no stage reads a file of this name
    by_file = config.load(stage, None, path)
    assert by_file == config.load(stage, path.parent.relative_to(ROOT).as_posix())
    assert isinstance(by_file, config.STAGES[stage].schema)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_header_says_purpose_command_hardware_and_numbers(path: Path):
    lines = path.read_text().splitlines()
    header = list(takewhile(lambda line: line.startswith("# "), lines))
    # The purpose comes first, in as many lines as it takes.
    starts = [next((n for n, line in enumerate(header) if line.startswith(f"# {start}")), 0) for start in HEADER]
    assert starts == sorted(starts)
    assert starts[0] > 0
    command = header[starts[0]][2:]
    verb = re.match(r"command: make (\S+)(?: EXP=(\S+))?", command)
    assert verb is not None
    assert verb[1] == STAGE_OF[path.name]
    assert verb[2] == (None if verb[1] == "pocket-weights" else path.parent.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("exp", CHAINS)
def test_the_stages_of_an_experiment_agree(exp: str):
    encoder, prior, reconstruct = (config.load(verb, exp) for verb in ("train-encoder", "train-prior", "reconstruct"))
    targets = config.load("extract-targets", exp)
    assert encoder.target == prior.target == reconstruct.target
    assert encoder.data.split == prior.data.split == reconstruct.data.split
    assert encoder.target.name in targets.targets
    assert encoder.latent_target.name in ("", *targets.targets)
    assert prior.sample == reconstruct.sample
    assert {encoder.data.set, prior.data.set, reconstruct.data.set} == {targets.data.set}


def test_the_control_differs_from_pocket_in_its_labels_alone():
    for stage in set(config.STAGES) - {"pocket-weights"}:
        differing = config.diff(*(config.to_dict(config.load(stage, exp)) for exp in CHAINS))
        assert differing == (["permute_labels"] if stage == "train-encoder" else [])
