"""Everything shipped is executed: every experiment YAML, found recursively, loads through its stage's schema."""

import re
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from eegrecon import cli, config
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
# Experiments that make pictures with more than the prior, and the experiment whose encoder and prior they take.
PATHWAYS = {
    f"{plain}_{name}": plain
    for plain in ("pocket", "things_eeg2/atm_s")
    for name in ("low_level", "semantic", "pathways")
}
# What pictures are told for each pathway, and nothing else.
LOW_LEVEL = {"latent_target.name", "pathways.low_level", "generator.args.strength"}
SEMANTIC = {
    "pathways.semantic.source", "pathways.semantic.projector", "generator.args.captions",
    "generator.args.prompt_strength",
}  # fmt: skip
HEADER = ("command: make ", "hardware: ", "expected: ")


def test_all_of_them_are_found():
    # A new experiment raises this number on purpose: a YAML that no test reads is a YAML that is wrong.
    assert len(FILES) == 114
    pocket = ["pocket", "pocket_bench", "pocket_captions", "pocket_permuted", "pocket_weights"]
    assert config.list_experiments() == sorted([*pocket, *ENCODERS_ALONE[:-1], *PATHWAYS])


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


def made_before_pictures(exp: str) -> list[str]:
    """What `make reconstruct EXP=exp` runs first: it passes --upstream."""
    options = cli._parse(["reconstruct", "--exp", exp, "--upstream"])
    return [words[0] for words in cli.upstream_commands(options, cli._config(options))]


@pytest.mark.parametrize("exp", PATHWAYS)
def test_a_pathway_has_a_yaml_for_each_stage_that_its_pictures_need_and_no_other(exp: str):
    verbs = [*made_before_pictures(exp), "reconstruct"]
    assert {config.STAGES[verb].yaml for verb in verbs} == {path.name for path in (ROOT / exp).iterdir()}
    assert ("train-low-level" in verbs) == (not exp.endswith("_semantic"))
    assert ("train-projector" in verbs) == (not exp.endswith("_low_level"))


@pytest.mark.parametrize(("exp", "plain"), PATHWAYS.items())
def test_a_pathway_differs_from_the_plain_experiment_in_what_it_needs_alone(exp: str, plain: str):
    for stage in set(made_before_pictures(exp)) - {"extract-targets", "train-projector"}:
        assert config.load(stage, exp) == config.load(stage, plain)  # so that runs of the one serve the other
    targets, below = (config.load("extract-targets", name).targets for name in (exp, plain))
    assert {name: targets[name] for name in below} == below
    told: set[str] = set()
    more: set[str] = set()
    if not exp.endswith("_semantic"):
        told |= LOW_LEVEL
        more |= {"vae_latent"} if plain != "pocket" else set()  # whose encoder has a latent head, so they are there
    if not exp.endswith("_low_level"):
        told |= SEMANTIC | ({"pathways.semantic.captioner"} if plain != "pocket" else set())
        more |= {"layer"}
    assert {targets[name].kind for name in targets.keys() - below.keys()} == more
    assert set(config.diff(*(config.to_dict(config.load("reconstruct", name)) for name in (plain, exp)))) == told


@pytest.mark.parametrize("exp", PATHWAYS)
def test_the_stages_of_a_pathway_agree(exp: str):
    made, reconstruct = made_before_pictures(exp), config.load("reconstruct", exp)
    targets, encoder = config.load("extract-targets", exp).targets, config.load("train-encoder", exp)
    generator, pathways = reconstruct.generator.args, reconstruct.pathways
    assert pathways.prior
    if "train-low-level" in made:
        low_level = config.load("train-low-level", exp)
        assert low_level.data == encoder.data
        assert reconstruct.latent_target == low_level.latent_target
        model = targets[low_level.latent_target.name].model
        assert (model.name, model.args["base"]) == ("sdxl_vae", generator["base"])
        assert model.args.get("size", 64) == generator.get("size", 64)  # both have this default
        assert int(generator["num_inference_steps"] * generator["strength"]) >= 2
    if "train-projector" in made:
        projector = config.load("train-projector", exp)
        assert (pathways.semantic.source, pathways.semantic.projector) == ("captions", projector.name)
        assert (projector.data.set, projector.data.split) == (encoder.data.set, encoder.data.split)
        assert projector.target == reconstruct.target
        model = targets[projector.tokens].model
        assert (model.name, model.args["name"]) == ("git", pathways.semantic.captioner)
        assert generator["captions"] is True


@pytest.mark.parametrize("what", ["extract-targets", "train-projector"])
def test_what_experiments_of_a_set_share_is_made_alike_by_all(what: str):
    """Stores and projectors lie in the set's folder: two experiments that differ would refuse each other's."""
    found: dict[tuple[str, str], dict] = {}
    for exp in config.list_experiments():
        if not (ROOT / exp / config.STAGES[what].yaml).is_file():
            continue
        cfg = config.load(what, exp)
        made = {plan.name: plan.identity("") for plan in plans(cfg.targets)} if what == "extract-targets" else {}
        for name, identity in made.items() if made else [(cfg.name, config.to_dict(cfg))]:
            assert found.setdefault((cfg.data.set, name), identity) == identity, f"{exp} makes another {name}"
    assert len(found) > 1
