import subprocess
import sys
import types
from pathlib import Path

import pytest

from eegrecon import cli
from eegrecon.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("clean_rank")
HEAVY = ("torch", "numpy", "lightning", "diffusers", "matplotlib")


@pytest.fixture
def stages(monkeypatch):
    """Stages that only note how they were called; subprocesses likewise."""
    calls: list[tuple] = []

    def make(verb: str) -> None:
        module = types.ModuleType(f"eegrecon.stages.{verb}")

        def run(cfg, *, directory: Path, command: str, overwrite: bool = False) -> None:
            calls.append((verb, cfg, directory, command, overwrite))

        module.run = run
        monkeypatch.setitem(sys.modules, f"eegrecon.stages.{verb}", module)

    for verb in (
        "prepare_data",
        "extract_targets",
        "train_encoder",
        "train_prior",
        "train_low_level",
        "reconstruct",
        "evaluate",
        "pocket_weights",
    ):
        make(verb)
    return calls


def sentence(capsys, *arguments: str) -> str:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_verb_becomes_a_config_a_directory_and_a_call(stages, capsys):
    assert cli.main(["train-encoder", "--exp", "pocket", "seed=3", "--subject", "2", "loss.mse=0.5"]) == 0
    ((verb, cfg, directory, command, overwrite),) = stages
    assert verb == "train_encoder"
    assert (cfg.data.subjects, cfg.seed, cfg.loss.mse) == ([2], 3, 0.5)
    assert directory == Path("runs/pocket/sub-02/seed-3/encoder")
    assert command == "eegrecon train-encoder --exp pocket seed=3 --subject 2 loss.mse=0.5"
    assert overwrite is False
    assert "finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prepare-data", "--exp", "pocket", "data.root=/d"], "/d/pocket"),
        (["extract-targets", "--exp", "pocket"], "data/pocket"),
        (["train-prior", "--exp", "pocket", "--run", "/r", "--seed", "1"], "/r/prior"),
        (["train-low-level", "--exp", "pocket", "--seed", "1"], "runs/pocket/sub-01/seed-1/low_level"),
        (["reconstruct", "--exp", "pocket", "--seed", "1"], "runs/pocket/sub-01/seed-1/reconstruct"),
        (["pocket-weights", "--exp", "pocket_weights"], "runs/pocket_weights/seed-0/weights"),
        (["evaluate", "--exp", "pocket_permuted"], "runs/pocket_permuted/sub-01/seed-0/evaluate"),
        (["train-prior", "--exp", "pocket", "data.subjects=[1,2]"], "runs/pocket/sub-01-02/seed-0/prior"),
    ],
)
def test_directories(stages, arguments, expected):
    assert cli.main(arguments) == 0
    assert stages[0][2] == Path(expected)


JOINT = ["data.protocol=joint", "data.subjects=[1,2]"]
LOSO = ["data.protocol=leave_one_subject_out", "data.subjects=[1,2,3]"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train-encoder", "--subject", "2", *LOSO], "runs/pocket/all-but-02/seed-0/encoder"),
        (["reconstruct", *LOSO, "data.test_subject=3"], "runs/pocket/all-but-03/seed-0/reconstruct"),
        (["train-prior", "--subject", "2", *JOINT], "runs/pocket/sub-01-02/seed-0/prior"),
        (["train-low-level", "--subject", "2", *JOINT], "runs/pocket/sub-01-02/seed-0/low_level"),
        (["reconstruct", "--subject", "2", *JOINT], "runs/pocket/sub-01-02/seed-0/reconstruct-sub-02"),
        (["evaluate", "--subject", "1", "--run", "/r", *JOINT], "/r/evaluate-sub-01"),
    ],
)
def test_directories_of_the_other_protocols(stages, arguments, expected):
    verb, *rest = arguments
    assert cli.main([verb, "--exp", "pocket", *rest]) == 0
    assert stages[0][2] == Path(expected)


def test_a_config_file_of_ones_own_names_the_run_after_its_folder(stages, tmp_path):
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "encoder.yaml"
    file.write_text((Path(cli.__file__).parents[1] / "experiments/pocket/encoder.yaml").read_text())
    assert cli.main(["train-encoder", "--config", str(file)]) == 0
    assert stages[0][2] == Path("runs/mine/sub-01/seed-0/encoder")


def test_up_to_date_is_said(stages, tmp_path, capsys):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "manifest.json").write_text("{}")
    assert cli.main(["train-encoder", "--exp", "pocket", "--run", str(tmp_path)]) == 0
    assert "up to date" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "required: VERB"),
        (["train"], "invalid choice: 'train'"),
        (["train-encoder"], "One of the arguments --exp --config is required"),
        (["train-encoder", "--exp", "pockt"], "did you mean 'pocket'?"),
        (["train-encoder", "--exp", "pocket", "--subject", "one"], "invalid int value: 'one'"),
        (["train-encoder", "--exp", "pocket", "--subjct", "1"], "There is no option '--subjct'"),
        (["train-encoder", "--exp", "pocket", "nonsense"], "'nonsense' is not of the form key=value"),
        (["train-encoder", "--exp", "pocket", "encodr.name=ridge"], "unknown key 'encodr' (did you mean 'encoder'?"),
        (["train-encoder", "--exp", "pocket", "encoder.name=x"], "the choices are: atm_s, atm_e, nice"),
        (["train-encoder", "--exp", "pocket", "seed=x"], "'seed' must be a whole number"),
        (["prepare-data", "--exp", "pocket", "--seed", "1"], "There is no option '--seed'"),
        (["train-encoder", "--config", "/none/encoder.yaml"], "/none/encoder.yaml cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(stages, capsys, arguments, expected):
    assert expected in sentence(capsys, *arguments)
    assert not stages


def test_a_stage_error_is_one_sentence_and_an_interrupt_is_130(stages, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise DataError("There are no trials in data/pocket: run make prepare-data.")

    monkeypatch.setattr(sys.modules["eegrecon.stages.train_encoder"], "run", fail)
    assert "There are no trials" in sentence(capsys, "train-encoder", "--exp", "pocket")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["eegrecon.stages.train_encoder"], "run", interrupt)
    assert cli.main(["train-encoder", "--exp", "pocket"]) == 130


@pytest.fixture
def children(monkeypatch):
    ran: list[list[str]] = []

    def run(words, check):
        assert words[:3] == [sys.executable, "-m", "eegrecon"]
        ran.append(words[3:])
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_upstream_makes_the_earlier_stages_with_the_shared_overrides(stages, children):
    overrides = ["data.root=/d", "data.window=[0,0.5]", "trainer.devices=2", "seed=5", "generator.args.size=32"]
    arguments = ["reconstruct", "--upstream", "--exp", "pocket", "--subject", "2", "--seed", "4", "--run", "/r"]
    assert cli.main([*arguments, *overrides]) == 0
    shared = ["data.root=/d", "data.window=[0,0.5]", "trainer.devices=2", "seed=5"]
    in_run = ["--exp", "pocket", "--subject", "2", "--seed", "4", "--run", "/r", *shared]
    assert children == [
        ["prepare-data", "--exp", "pocket", "--subject", "2", "data.root=/d"],  # SEED never changes the data
        ["extract-targets", "--exp", "pocket", "data.root=/d"],
        ["train-encoder", *in_run],
        ["train-prior", *in_run],
    ]
    assert [call[0] for call in stages] == ["reconstruct"]


@pytest.mark.parametrize(
    ("words", "last"),
    [
        (["--exp", "pocket"], "reconstruct"),
        (["--exp", "pocket", "pictures=false"], "train-encoder"),
        (["--exp", "things_eeg2/atm_s"], "train-encoder"),  # has neither prior.yaml nor reconstruct.yaml
    ],
)
def test_an_evaluation_without_pictures_needs_nothing_after_the_encoder(stages, children, words, last):
    assert cli.main(["evaluate", "--upstream", *words]) == 0
    verbs = ["prepare-data", "extract-targets", "train-encoder", "train-prior", "reconstruct"]
    assert [child[0] for child in children] == verbs[: verbs.index(last) + 1]
    assert not any("pictures=false" in child for child in children)  # prepare-data has a block of this name


def test_pictures_are_a_switch_of_evaluate_and_a_block_of_prepare_data(stages, children):
    words = ["pictures=false", "pictures.size=32"]
    assert cli.main(["evaluate", "--upstream", "--exp", "pocket", *words]) == 0
    assert [child[-1] for child in children if "pictures.size=32" in child] == ["pictures.size=32"]
    assert children[0][0] == "prepare-data"
    assert "pictures.size=32" in children[0]
    assert stages[0][1].pictures is False


@pytest.mark.parametrize(("protocol", "all_of_them"), [(LOSO, "[1,2,3]"), (JOINT, "[1,2]")])
def test_upstream_makes_the_data_of_all_subjects(stages, children, protocol, all_of_them):
    words = ["--exp", "pocket", "--subject", "2"]
    assert cli.main(["reconstruct", "--upstream", *words, *protocol]) == 0
    assert children == [
        ["prepare-data", "--exp", "pocket", f"data.subjects={all_of_them}"],
        ["extract-targets", "--exp", "pocket"],
        ["train-encoder", *words, *protocol],
        ["train-prior", *words, *protocol],
    ]


def test_upstream_stops_at_the_first_failure(stages, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda words, check: types.SimpleNamespace(returncode=2))
    assert cli.main(["train-prior", "--upstream", "--exp", "pocket"]) == 2
    assert not stages


def test_upstream_is_rank_zeros_work(stages, children, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.main(["train-prior", "--upstream", "--exp", "pocket"]) == 0
    assert not children
    assert len(stages) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["reconstruct", "--help"], 0),
        (["train-encoder", "--exp", "pocket", "encoder.name=typo", "seed=x", "foo.bar=1"], 2),
        (["reconstruct", "--exp", "nonexistent"], 2),
    ],
)
def test_help_and_config_errors_import_nothing_heavy(arguments, code):
    # Under a second, asserted by what is imported, which a busy machine cannot change.
    script = (
        "import sys; from eegrecon.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "eegrecon", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("eegrecon ")


def test_overrides_of_data_blocks_reach_only_the_data_verbs():
    words = ["source.name=original", "source.args.path=/x", "targets.a.model.name=feature_file", "loader.batch_size=8"]
    options = cli._parse(["train-encoder", "--exp", "pocket", "--upstream", *words])
    made = {command[0]: command for command in cli.upstream_commands(options, cli._config(options))}
    assert {"source.name=original", "source.args.path=/x"} <= set(made["prepare-data"])
    assert "targets.a.model.name=feature_file" in made["extract-targets"]
    assert not any(word.startswith("targets") for word in made["prepare-data"])
    assert not any(word.startswith("source") for word in made["extract-targets"])
    assert cli._config(options).loader.batch_size == 8
    with pytest.raises(ConfigError, match="unknown key 'source'"):
        cli._config(cli._parse(["train-encoder", "--exp", "pocket", *words]))


@pytest.mark.parametrize(
    ("overrides", "beside"),
    [
        ([], []),
        (["pathways.low_level=head"], []),  # of the encoder, which is made anyway
        (["pathways.low_level=low_level"], ["train-low-level"]),
        (["pathways.semantic.source=captions"], ["train-projector"]),
    ],
)
def test_pathways_are_made_before_the_pictures(overrides, beside):
    options = cli._parse(["reconstruct", "--exp", "pocket", "--upstream", *overrides])
    made = [command[0] for command in cli.upstream_commands(options, cli._config(options))]
    assert made == ["prepare-data", "extract-targets", "train-encoder", "train-prior", *beside]
