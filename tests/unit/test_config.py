import dataclasses
from pathlib import Path

import pytest

from eegrecon import config
from eegrecon.errors import ConfigError

ENCODER = """
data: {set: pocket, subjects: [1], split: {val_concepts: 4}}
target: {name: clip-pocket}
encoder: {name: atm_s, args: {position: none}}
loss: {contrastive: 0.9, mse: 0.1}
optim: {name: adamw, args: {lr: 3.0e-4}}
loader: {batch_size: 8}
select: {monitor: "val/retrieval_top1_${data.split.val_concepts}way"}
trainer: {max_epochs: 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.yaml"
    path.write_text(ENCODER)
    return path


def message(file: Path, *overrides: str, stage: str = "train-encoder") -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(stage, None, file, list(overrides))
    return str(caught.value)


def test_yaml_over_defaults_and_overrides_over_yaml(file):
    cfg = config.load("train-encoder", None, file, ["seed=3", "data.root=/big", "trainer.devices=2"])
    assert isinstance(cfg, config.TrainEncoderConfig)
    assert (cfg.seed, cfg.data.root, cfg.data.repetitions, cfg.data.window) == (3, "/big", "each", [0.0, 1.0])
    assert cfg.trainer == {"max_epochs": 1, "devices": 2}
    assert cfg.optim == config.Choice("adamw", {"lr": 3e-4})
    assert cfg.latent_target.name == ""


def test_result_is_plain_and_frozen(file):
    cfg = config.load("train-encoder", None, file)
    assert type(cfg.trainer) is dict
    assert type(cfg.data.subjects) is list
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.seed = 1


def test_interpolation_is_resolved(file):
    cfg = config.load("train-encoder", None, file, ["data.split.val_concepts=7"])
    assert cfg.select.monitor == "val/retrieval_top1_7way"


def test_another_name_drops_the_args_below(file):
    assert config.load("train-encoder", None, file, ["encoder.name=ridge"]).encoder == config.Choice("ridge", {})
    same = config.load("train-encoder", None, file, ["encoder.name=atm_s", "encoder.args.depth=2"])
    assert same.encoder.args == {"position": "none", "depth": 2}


def test_extends_one_parent(file, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: encoder.yaml\nencoder: {name: ridge}\nloss: {mse: 0.5}\n")
    cfg = config.load("train-encoder", None, child)
    assert cfg.encoder == config.Choice("ridge", {})
    assert (cfg.loss.contrastive, cfg.loss.mse) == (0.9, 0.5)
    grandchild = tmp_path / "grandchild.yaml"
    grandchild.write_text("extends: child.yaml\n")
    assert "only one parent is allowed" in message(grandchild)


def test_all_problems_are_listed_at_once(file):
    text = message(
        file, "encoder.name=atm-s", "loader.batch_size=many", "data.windw=[0,1]", "data.repetitions=eech", "nonsense"
    )
    assert "has 5 problems" in text
    assert (
        "'encoder.name' is 'atm-s', which is not known (did you mean 'atm_s'? the choices are: atm_s, atm_e, nice"
        in text
    )
    assert "'loader.batch_size' must be a whole number, but it is 'many'" in text
    assert "unknown key 'data.windw' (did you mean 'window'?" in text
    assert "'data.repetitions' is 'eech', which is not known (did you mean 'each'?" in text
    assert "'nonsense' is not of the form key=value" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.set=???", "'data.set' has no value (set it in the YAML or pass data.set=…)"),
        ("seed=1.5", "'seed' must be a whole number, but it is 1.5"),
        ("seed=${data.sett}", "Interpolation key 'data.sett' not found"),
        ("data.set=null", "'data.set' must be text, but it is None"),
        ("baseline_ridge=maybe", "'baseline_ridge' must be true or false, but it is 'maybe'"),
        ("loss=3", "'loss' must be a mapping of keys to values, but it is 3"),
        ("trainer=[1]", "'trainer' must be a mapping of keys to values, but it is [1]"),
        ("loader.batch_size=0", "'loader.batch_size' must be at least 1, but it is 0"),
        ("data.subjects=[one]", "'data.subjects' must be a list, each item a whole number"),
        ("data.subjects=[]", "'data.subjects' must name at least one subject"),
        ("data.window=[1,0]", "'data.window' must be [start, stop] in seconds"),
        ("data.channels=[]", "'data.channels' must be all or a list of channel names"),
        ("data.channels={region: back}", "{region: one or more of frontal, central, parietal, temporal, occipital}"),
        ("data.channels={area: occipital}", "'data.channels' must be all or a list of channel names"),
        ("data.repetitions={average: 1}", "'data.repetitions' must be each, average or {average: k} with k from 2"),
        ("data.repetitions=3", "'data.repetitions' must be each, average or {average: k}"),
        ("data.sessions=[0]", "'data.sessions' must be all or a list of session numbers from 1"),
        ("data.sessions=2", "'data.sessions' must be all or a list of session numbers from 1"),
        ("data.keep_repetitions=0", "'data.keep_repetitions' must be all, a count or a list of numbers from 0"),
        ("data.protocol=loso", "'data.protocol' is 'loso', which is not known (the choices are: within_subject, leave"),
        ("data.test_subject=two", "'data.test_subject' must be a whole number or null, but it is 'two'"),
        ("data.test_subject=1", "'data.test_subject' is 1, but within_subject tests the subject it is trained on"),
        ("data.protocol=joint", "'data.subjects' must name two or more different subjects for joint, but it is [1]"),
        ("loader.on_device=maybe", "'loader.on_device' is 'maybe', which is not known (the choices are: auto, True,"),
        ("optim.args=4", "'optim.args' must be a mapping"),
        ("seed=[1", "the value of 'seed=[1' cannot be parsed"),
        ("optim.name=adamww", "did you mean 'adamw'?"),
    ],
)
def test_one_problem_one_sentence(file, override, expected):
    text = message(file, override)
    assert expected in text
    assert text.startswith(f"The train-encoder config from {file} has a problem: ")
    assert "\n" not in text


LOSO = ["data.protocol=leave_one_subject_out", "data.subjects=[1,2,3]"]


def test_whom_a_protocol_trains_and_tests(file):
    load = lambda *overrides, subject=None: config.load("train-encoder", None, file, overrides, subject).data  # noqa: E731
    within = load(subject=7)
    assert (within.subjects, within.training_subjects, within.tested_subject) == ([7], [7], 7)
    left = load(*LOSO, subject=2)
    assert (left.subjects, left.training_subjects, left.tested_subject) == ([1, 2, 3], [1, 3], 2)
    assert left == load(*LOSO, "data.test_subject=2")
    assert load(*LOSO, "data.test_subject=2", subject=3).tested_subject == 2  # key=value wins, as everywhere
    joint = load("data.protocol=joint", "data.subjects=[1,2]", subject=2)
    assert (joint.training_subjects, joint.test_subject) == ([1, 2], None)
    assert "'data.test_subject' is 4, which is none of data.subjects (1, 2, 3)" in message(
        file, *LOSO, "data.test_subject=4"
    )
    assert "'data.test_subject' has no value: say which subject is left out (--subject N)" in message(file, *LOSO)


def test_who_is_tested_later_does_not_change_a_joint_encoder(file):
    words = ["data.protocol=joint", "data.subjects=[1,2]"]
    one, two = (config.load("train-encoder", None, file, words, subject) for subject in (1, 2))
    assert config.config_hash(one) == config.config_hash(two)
    with pytest.raises(ConfigError, match=r"'data\.test_subject' is 3, which is none of data\.subjects \(1, 2\)"):
        config.load("train-encoder", None, file, words, 3)
    pictures = [config.load("reconstruct", "pocket", None, words, subject) for subject in (1, 2)]
    assert [cfg.data.tested_subject for cfg in pictures] == [1, 2]
    assert config.config_hash(pictures[0]) != config.config_hash(pictures[1])


def test_choices_of_several_forms_are_taken_as_they_are(file):
    words = ["data.channels={region: [occipital, parietal]}", "data.repetitions={average: 2}", "data.sessions=[1,3]"]
    data = config.load("train-encoder", None, file, [*words, "data.keep_repetitions=2"]).data
    assert data.channels == {"region": ["occipital", "parietal"]}
    assert (data.repetitions, data.sessions, data.keep_repetitions) == ({"average": 2}, [1, 3], 2)
    assert type(data.repetitions) is dict
    assert config.keys_of("train-encoder", "data.repetitions.average")


def test_dict_of_dataclasses_is_checked_inside(tmp_path):
    path = tmp_path / "extract-targets.yaml"
    path.write_text("data: {set: s}\ntargets: {a: {kind: imag, model: {name: pocket_clip}}, b: {model: {name: x}}}\n")
    text = message(path, "targets.a.sizes=3", stage="extract-targets")
    assert "has 4 problems" in text
    for part in ("'targets.a.kind' is 'imag'", "'targets.b.kind' has no value", "'targets.b.model.name' is 'x'"):
        assert part in text
    good = config.load("extract-targets", "pocket", None, ["targets.clip-pocket.batch_size=3"])
    assert good.targets["clip-pocket"].batch_size == 3


def test_unknown_experiment_lists_them(file):
    with pytest.raises(ConfigError, match=r"no experiment 'pockt'.*did you mean 'pocket'\?.*pocket_permuted"):
        config.load("train-encoder", "pockt")
    with pytest.raises(ConfigError, match="no stage 'train'"):
        config.load("train", "pocket")
    with pytest.raises(ConfigError, match="exactly one of --exp NAME and --config FILE"):
        config.load("train-encoder", "pocket", file)


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [1\n", "a: b: c\n", "just words", "\xff\xfe", "? [a]\n: b\n"])
def test_a_file_that_is_no_mapping_is_one_sentence(tmp_path, content):
    path = tmp_path / "encoder.yaml"
    path.write_bytes(content.encode("latin-1"))
    assert "\n" not in message(path)


def test_missing_file_names_the_path(tmp_path):
    assert str(tmp_path / "none.yaml") in message(tmp_path / "none.yaml")


def test_to_yaml_shows_defaults_and_round_trips(file):
    cfg = config.load("train-encoder", None, file)
    text = config.to_yaml(cfg)
    assert "permute_labels: false" in text
    assert "split_seed: 0" in text
    assert config.parse_yaml(text) == config.to_dict(cfg)


def test_hash_ignores_where_and_how_it_looks_and_nothing_else(file):
    cfg = config.load("train-encoder", None, file)
    same = [
        "data.root=/elsewhere",
        "loader.num_workers=4",
        "loader.on_device=false",
        "trainer.enable_progress_bar=false",
    ]
    assert config.config_hash(config.load("train-encoder", None, file, same)) == config.config_hash(cfg)
    other = config.load("train-encoder", None, file, ["loss.mse=0.2"])
    assert config.config_hash(other) != config.config_hash(cfg)
    # What is compared with a finished directory is read back from its config.yaml.
    assert config.config_hash(config.parse_yaml(config.to_yaml(cfg))) == config.config_hash(cfg)


def test_diff_lists_dotted_keys(file):
    a = config.to_dict(config.load("train-encoder", None, file))
    b = config.to_dict(config.load("train-encoder", None, file, ["loss.mse=0.2", "trainer.devices=2", "data.root=/x"]))
    assert config.diff(a, b) == ["loss.mse", "trainer.devices"]
    assert config.diff(a, a) == []


def test_keys_of_knows_the_schema():
    assert config.keys_of("train-encoder", "data.split.val_concepts")
    assert config.keys_of("train-encoder", "trainer.anything.below")
    assert config.keys_of("extract-targets", "targets.any.batch_size")
    assert not config.keys_of("prepare-data", "data.window")
    assert not config.keys_of("prepare-data", "trainer.devices")
    assert not config.keys_of("train-encoder", "seed.below")


def test_a_list_of_blocks_is_checked_block_by_block():
    override = "fusion_targets=[{name: vae-pocket, l2_normalise: true}, {name: other}]"
    blocks = config.load("train-encoder", "pocket", overrides=[override]).fusion_targets
    assert [(block.name, block.l2_normalise) for block in blocks] == [("vae-pocket", True), ("other", False)]
    assert config.load("train-encoder", "pocket").fusion_targets == []
    with pytest.raises(ConfigError) as error:
        config.load("train-encoder", "pocket", overrides=["fusion_targets=[{nmae: x}, {name: y, mixing: some}]"])
    for words in ("unknown key 'fusion_targets.0.nmae'", "'fusion_targets.0.name' has no value", "'some'"):
        assert words in str(error.value)
    with pytest.raises(ConfigError, match="'fusion_targets' must be a list of mappings"):
        config.load("train-encoder", "pocket", overrides=["fusion_targets=vae-pocket"])
