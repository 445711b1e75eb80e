"""Everything shipped is executed: every experiment YAML, found recursively, loads through its stage's schema."""

import re
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from eegrecon import config
from eegrecon.stages.encoder_build import target_names
from eegrecon.stages.target_plan import plans

ROOT = config.experiments_root()
# Lists of runs over experiments; `tests/integration/test_sweep.py` reads them.
SWEEPS = ("pocket/bench.yaml",)
FILES = sorted(path for path in ROOT.rglob("*.yaml") if path.relative_to(ROOT).as_posix() not in SWEEPS)
STAGE_OF = {spec.yaml: stage for stage, spec in config.STAGES.items()}
# Experiments that run the whole chain.
CHAINS = ("pocket", "pocket_permuted", "things_eeg2/atm_s", "things_eeg2/atm_s_sdxl")
# Experiments whose `evaluate` gives the encoder's own numbers.
RECIPES = (
    "atm_e", "atm_s", "atm_s_apr24", "atm_s_main", "atm_s_paper", "atm_s_sdxl", "intermediate_layer", "multi_blur",
    "nice", "ubp", "vae_fusion",
)  # fmt: skip
ENCODERS_ALONE = (*(f"things_eeg2/{name}" for name in RECIPES), "things_meg/atm_s", "pocket_bench")
HEADER = ("command: make ", "hardware: ", "expected: ")


def test_all_of_them_are_found():
    # A new experiment raises this number on purpose: a YAML that no test reads is a YAML that is wrong.
    assert len(FILES) == 76
    pocket = ["pocket", "pocket_bench", "pocket_captions", "pocket_permuted", "pocket_weights"]
    assert config.list_experiments() == [*pocket, *sorted(ENCODERS_ALONE[:-1])]


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
    low_level = config.load("train-low-level", exp)
    targets = config.load("extract-targets", exp)
    assert encoder.target == prior.target == reconstruct.target
    assert encoder.data.split == prior.data.split == reconstruct.data.split
    assert encoder.target.name in targets.targets
    assert encoder.latent_target.name in ("", *targets.targets)
    assert low_level.data == encoder.data
    assert encoder.latent_target.name in ("", low_level.latent_target.name)
    assert prior.sample == reconstruct.sample
    assert {encoder.data.set, prior.data.set, reconstruct.data.set} == {targets.data.set}


@pytest.mark.parametrize("exp", ENCODERS_ALONE)
def test_an_encoder_is_evaluated_on_what_it_was_trained_for(exp: str):
    encoder, evaluate = config.load("train-encoder", exp), config.load("evaluate", exp)
    targets = config.load("extract-targets", exp)
    assert not evaluate.pictures
    assert replace(encoder.target, levels=[], mixing="none") == evaluate.target
    assert encoder.fusion_targets == evaluate.fusion_targets
    # how training rows are averaged is no business of the test trials
    assert replace(encoder.data, repetitions="each") == replace(evaluate.data, repetitions="each")
    stores = [plan.name for plan in plans(targets.targets)]
    assert set(target_names(encoder).values()) <= set(stores)
    if evaluate.text_target.name:
        assert targets.targets[evaluate.text_target.name].kind == "text"


def test_the_control_differs_from_pocket_in_its_labels_alone():
    for stage in set(config.STAGES) - {"pocket-weights", "train-projector"}:
        differing = config.diff(*(config.to_dict(config.load(stage, exp)) for exp in CHAINS[:2]))
        assert differing == (["permute_labels"] if stage in ("train-encoder", "train-low-level") else [])


def test_sdxl_base_differs_from_turbo_in_the_generator_alone():
    for stage in set(config.STAGES) - {"pocket-weights", "train-projector", "reconstruct"}:
        assert config.load(stage, "things_eeg2/atm_s") == config.load(stage, "things_eeg2/atm_s_sdxl")
    turbo, base = (config.load("reconstruct", f"things_eeg2/{exp}") for exp in ("atm_s", "atm_s_sdxl"))
    assert replace(base, generator=turbo.generator) == turbo
    changed = {key for key, value in base.generator.args.items() if turbo.generator.args[key] != value}
    assert changed == {"base", "num_inference_steps", "guidance_scale", "size"}
