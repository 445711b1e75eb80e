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
    assert "'encoder.name' is 'atm-s', which is not known (did you mean 'atm_s'? the choices are: atm_s, ridge" in text
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
    same = ["data.root=/elsewhere", "loader.num_workers=4", "trainer.enable_progress_bar=false"]
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
