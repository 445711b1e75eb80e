"""Many runs with one command: what is planned, what is run, what happens when something breaks, and the table."""

import csv
import fnmatch
import json
import logging
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from eegrecon.cli import main
from eegrecon.config import ENCODERS
from eegrecon.errors import ConfigError
from eegrecon.stages import sweep as sweep_tool
from eegrecon.stages import sweep_alive, sweep_worker, train_encoder
from eegrecon.stages.sweep_plan import check_runs, data_commands, read_sweep, runs_of, write_runs
from tests.builders import build_tiny_set

pytestmark = [pytest.mark.usefixtures("clean_rank"), pytest.mark.filterwarnings("ignore:.*does not have many workers")]
ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "experiments" / "pocket" / "bench.yaml"
TRAINER = "trainer={accelerator: cpu, devices: 1, max_epochs: 1, num_sanity_val_steps: 0}"
SMALL = ["loss.vae_latent=0", "latent_target.name=''", "loader.batch_size=16", "baseline_ridge=false", TRAINER]
TEXT = """
jobs: 2
groups:
  tiny:
    experiment: pocket
    subjects: [1, 2]
    seeds: [0, 1]
    protocols: [within_subject, leave_one_subject_out]
    shared: {shared}
    variants:
      ridge: [encoder.name=ridge]
      mlp: ["encoder={{name: mlp, args: {{hidden: [8]}}}}"]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    build_tiny_set(root, subjects=(1, 2), test_concepts=6)
    return root


@pytest.fixture
def file(root, tmp_path):
    shared = json.dumps([f"data.root={root}", "data.split.val_concepts=4", *SMALL])
    path = tmp_path / "mine" / "bench.yaml"
    path.parent.mkdir()
    path.write_text(TEXT.format(shared=shared))
    return path


def sweep(file, tmp_path, *words):
    return main(["sweep", str(file), "--out", str(tmp_path / "out"), "--skip-data", "--executor", "inline", *words])


def test_the_shipped_sweep_is_whole():
    found = read_sweep(SHIPPED)
    runs = runs_of(found, Path("x"))
    assert len({run.directory for run in runs}) == len(runs)
    check_runs(runs)
    within, left_out = found.groups["within"], found.groups["left_out"]
    assert within.protocols + left_out.protocols == ["within_subject", "leave_one_subject_out"]
    for group in (within, left_out):
        names = [
            word.partition("=")[2] for words in group.variants.values() for word in words if "encoder.name" in word
        ]
        assert set(names) == set(ENCODERS) - {"braindecode"}
    assert all(group.seeds == [0, 1, 2] for group in found.groups.values())
    assert len(within.subjects) == 4
    assert ["prepare-data", "--exp", "pocket_bench", "data.subjects=[1,2,3,4]"] in data_commands(runs)


def test_data_are_made_where_runs_look_for_them(tmp_path):
    file = tmp_path / "places.yaml"
    file.write_text(
        """
groups:
  shared: {experiment: pocket, subjects: [1], shared: [data.root=/scratch/d], variants: {a: [], b: [data.set=other]}}
  more: {experiment: pocket, subjects: [2], variants: {a: ["data={root: /scratch/d}"], b: [encoder.name=ridge]}}
"""
    )

    def made(*more, only="*"):
        runs = [run for run in runs_of(read_sweep(file, more), tmp_path) if fnmatch.fnmatch(run.name, only)]
        found = data_commands(runs, more)
        for preparation, targets in zip(found[::2], found[1::2], strict=True):
            words = [word for word in preparation if not word.startswith("data.subjects=")]
            assert targets == ["extract-targets", *words[1:]]
        return [words[3:] for words in found[::2]]

    assert made() == [
        ["data.subjects=[1,2]", "data.root=/scratch/d", "data.set=pocket"],
        ["data.subjects=[1]", "data.root=/scratch/d", "data.set=other"],
        ["data.subjects=[2]"],
    ]
    assert made(only="more/b/*") == [["data.subjects=[2]"]]
    assert made("data.root=/mine", only="*/a/*") == [["data.subjects=[1,2]", "data.root=/mine", "data.set=pocket"]]


def test_the_command_line_has_the_last_word_and_levels_are_for_training_alone():
    runs = runs_of(read_sweep(SHIPPED, ["trainer.max_epochs=1", "target.mixing=mean"]), Path("x"))
    run = next(run for run in runs if run.variant == "blur_prior")
    training, evaluation = run.config("train-encoder", 1), run.config("evaluate", 1)
    assert (training.trainer["max_epochs"], training.target.mixing, len(training.target.levels)) == (1, "mean", 2)
    assert (evaluation.target.mixing, evaluation.target.levels) == ("none", [])


def test_runs_are_made_once_and_the_table_says_what_they_found(file, tmp_path, capsys):
    assert sweep(file, tmp_path) == 0
    out = tmp_path / "out"
    first = (out / "tiny" / "mlp" / "all-but-01" / "seed-1" / "encoder" / "manifest.json").stat().st_mtime_ns
    assert not list((out / ".sweep").glob("*"))
    with (out / "table.csv").open() as table:
        rows = {(row["variant"], row["protocol"]): row for row in csv.DictReader(table)}
    assert len(rows) == 4
    assert all(row["runs"] == row["planned"] == "4" for row in rows.values())
    for (variant, _), row in rows.items():
        assert (row["trials_per_second"] != "") == (variant == "mlp")
        assert float(row["test_top1_low"]) <= float(row["test_top1"]) <= float(row["test_top1_high"])
    # By hand: the mean over subjects and seeds of each run's own number.
    values = []
    for run in sorted((out / "tiny" / "ridge").glob("sub-*/seed-*/evaluate/metrics.json")):
        values.append(json.loads(run.read_text())["metrics"]["test/retrieval_top1_6way"]["value"])
    assert len(values) == 4
    assert float(rows["ridge", "within_subject"]["test_top1"]) == pytest.approx(sum(values) / 4, abs=1e-5)
    assert (out / "table.png").stat().st_size > 5000
    assert "over pictures" in (out / "table.txt").read_text()
    assert sweep(file, tmp_path) == 0
    again = (out / "tiny" / "mlp" / "all-but-01" / "seed-1" / "encoder" / "manifest.json").stat().st_mtime_ns
    assert again == first


def test_results_of_another_definition_do_not_count(file, tmp_path, capsys):
    only = ("--only", "tiny/ridge/within_subject/*/seed-0")
    assert sweep(file, tmp_path, *only) == 0
    out = tmp_path / "out"
    encoder = out / "tiny" / "ridge" / "sub-02" / "seed-0" / "encoder" / "manifest.json"

    def counted():
        table = json.loads((out / "table.json").read_text())
        notes = [note for note in table["notes"] if note.startswith("Left out")]
        return sum(row["runs"] for row in table["rows"]), notes

    assert counted() == (2, [])
    # An encoder that was made again, not yet evaluated: the scores beside it are of the one before.
    encoder.write_text(json.dumps({**json.loads(encoder.read_text()), "wall_seconds": 1.0}))
    assert sweep(file, tmp_path, "--table") == 0
    count, (note,) = counted()
    assert (count, note.rpartition("): ")[2]) == (1, "tiny/ridge/within_subject/sub-02/seed-0")
    # The variant is edited: a run in the same directory is refused, and the old result is not its own.
    file.write_text(
        file.read_text().replace("encoder.name=ridge", "encoder.name=ridge, encoder.args.samples_per_bin=2")
    )
    assert sweep(file, tmp_path, *only) == 2
    assert "ridge/within_subject/sub-01/seed-0 failed: " in capsys.readouterr().err
    count, (note,) = counted()
    assert count == 0
    assert note.endswith("): tiny/ridge/within_subject/sub-01/seed-0, tiny/ridge/within_subject/sub-02/seed-0")
    encoder.unlink()  # being made again: not finished
    assert sweep(file, tmp_path, "--table") == 0
    assert counted()[1][0].endswith("): tiny/ridge/within_subject/sub-01/seed-0")


def test_a_broken_run_is_told_and_the_others_go_on(file, tmp_path, capsys, monkeypatch):
    text = file.read_text().replace("seeds: [0, 1]", "seeds: [0]").replace("hidden: [8]", "hidden: [0]")
    file.write_text(text)
    assert sweep(file, tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("failed: encoder.args.hidden must be a list of positive widths") == 4
    with (tmp_path / "out" / "table.csv").open() as table:
        assert {row["variant"] for row in csv.DictReader(table)} == {"ridge"}
    log = tmp_path / "out" / "tiny" / "mlp" / "sub-01" / "seed-0" / "sweep.log"
    assert "positive widths" in log.read_text()


def test_a_logger_of_one_run_goes_on_in_the_next(file, tmp_path, capsys, monkeypatch):
    loggers = []
    original = train_encoder.run

    def logging_run(cfg, **keywords):
        if not loggers:  # as libraries do on first use: a handler on the stderr of that moment
            loggers.append(logging.StreamHandler())
        loggers[0].emit(logging.makeLogRecord({"msg": f"seed {cfg.seed}"}))
        return original(cfg, **keywords)

    monkeypatch.setattr(train_encoder, "run", logging_run)
    assert sweep(file, tmp_path, "--only", "tiny/ridge/within_subject/sub-01/*") == 0
    for seed in (0, 1):
        log = (tmp_path / "out" / "tiny" / "ridge" / "sub-01" / f"seed-{seed}" / "sweep.log").read_text()
        assert f"seed {seed}" in log
        assert "Logging error" not in log


def test_what_was_interrupted_is_continued(file, tmp_path, monkeypatch):
    calls = []
    original = train_encoder.run

    def watched(cfg, **keywords):
        calls.append(keywords["directory"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(cfg, **keywords)

    monkeypatch.setattr(train_encoder, "run", watched)
    assert sweep(file, tmp_path, "--only", "tiny/mlp/*") == 130
    assert sweep(file, tmp_path, "--only", "tiny/mlp/*") == 0
    assert len(calls) == 3 + 8
    finished = list((tmp_path / "out").rglob("evaluate/manifest.json"))
    assert len(finished) == 8


def test_a_run_that_a_cluster_takes_back_is_free_again(file, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_worker, "do_run", lambda run: 1 / 0)
    state = tmp_path / "state"
    state.mkdir()
    runs = runs_of(read_sweep(file), tmp_path / "out")[:1]
    write_runs(state / "runs.json", runs)
    worker = sweep_worker.Worker()
    with pytest.raises(ZeroDivisionError):
        worker(str(state))
    assert list(state.glob("*.claim"))
    worker.checkpoint(str(state))
    assert not list(state.glob("*.claim"))


def test_no_second_call_beside_living_workers(file, tmp_path, capsys):
    state = tmp_path / "out" / ".sweep" / "earlier"
    state.mkdir(parents=True)
    near = state / f"{socket.gethostname()}-{os.getppid()}.alive"  # any other process of this machine
    near.touch()
    assert sweep(file, tmp_path, "--only", "tiny/ridge/*") == 2
    assert f"still at work in {tmp_path / 'out'} ({near.stem})" in capsys.readouterr().err
    near.unlink()
    far = state / "elsewhere-12.alive"
    far.touch()
    assert sweep_alive.at_work(tmp_path / "out") == ["elsewhere-12"]
    os.utime(far, (0, 0))
    (state / f"{socket.gethostname()}-4194400.alive").touch()  # no such process: larger than any pid
    assert sweep_alive.at_work(tmp_path / "out") == []
    assert sweep(file, tmp_path, "--only", "tiny/ridge/within_subject/sub-01/seed-0") == 0
    assert not state.exists()


def signs(tmp_path):
    return [path.stem for path in (tmp_path / "out").glob(".sweep/*/*.alive")]


def test_a_call_shows_itself_before_any_worker_does(file, tmp_path, monkeypatch):
    seen = []

    def make_data(words, **_):
        seen.append(signs(tmp_path))
        return SimpleNamespace(returncode=0 if len(seen) < 3 else 3)

    class Pending:  # as on a cluster: two workers that wait for their turn
        def submit(self, worker, state):
            return self

        def done(self):
            seen.append(signs(tmp_path))
            return len(seen) > 4

        def exception(self):
            return None

    monkeypatch.setattr(subprocess, "run", make_data)
    monkeypatch.setattr(sweep_tool, "_executor", lambda *_: Pending())
    words = ["sweep", str(file), "--out", str(tmp_path / "out"), "--only", "tiny/ridge/*"]
    assert main(words) == 2  # no run was reached
    own = f"{socket.gethostname()}-{os.getpid()}"
    assert len(seen) > 4
    assert seen == [[own]] * len(seen)
    assert main(words) == 3  # data could not be made
    assert not list((tmp_path / "out" / ".sweep").iterdir())


def test_an_inline_worker_leaves_the_sign_to_the_call(tmp_path):
    with sweep_alive.alone_in(tmp_path) as state:
        write_runs(state / "runs.json", [])
        sweep_worker.Worker()(str(state))
        assert len(list(state.glob("*.alive"))) == 1
    assert not list(state.glob("*.alive"))


def test_a_late_job_of_a_killed_call_ends(tmp_path):
    with pytest.raises(FileNotFoundError):
        sweep_worker.Worker()(str(tmp_path / "gone"))


def test_a_sign_of_a_killed_worker_is_not_taken_for_who_has_its_pid_now(tmp_path):
    state = tmp_path / ".sweep" / "killed"
    state.mkdir(parents=True)
    other = state / f"{socket.gethostname()}-{os.getppid()}.alive"
    other.touch()
    assert sweep_alive.at_work(tmp_path) == [other.stem]
    os.utime(other, (0, time.time() - sweep_alive.SILENT_SECONDS - 1))
    assert sweep_alive.at_work(tmp_path) == []
    (state / f"{socket.gethostname()}-{os.getpid()}.alive").touch()  # the new sweep got the dead one's PID
    assert sweep_alive.at_work(tmp_path) == []


def test_a_worker_without_its_parent_begins_no_run(file, tmp_path, monkeypatch):
    state = tmp_path / "state"
    state.mkdir()
    write_runs(state / "runs.json", runs_of(read_sweep(file), tmp_path / "out"))
    monkeypatch.setattr(sweep_worker, "do_run", lambda run: {"name": run.name, "state": "done"})
    assert sweep_worker.Worker(parent=4194400)(str(state)) == 0
    assert not list(state.glob("*.claim"))
    assert sweep_worker.Worker(parent=os.getpid())(str(state)) == 16
    assert not list(state.glob("*.alive"))


def test_a_dry_run_lists_everything_and_does_nothing(file, tmp_path, capsys):
    words = ["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "first: eegrecon prepare-data --exp pocket 'data.subjects=[1,2]'" in said
    assert said.count("seed-1") == 2 * 8
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("experiment: pocket\n", "experiment: pockt\n"), "There is no experiment 'pockt'"),
        (("seeds: [0, 1]", "seeds: 3"), "groups.tiny.seeds must be a list of whole numbers"),
        (("protocols: [within_subject", "protocols: [within"), "names 'within'"),
        (("ridge: [encoder.name=ridge]", "ridge: [encodr.name=ridge]"), "no stage of a sweep .* knows the key"),
        (("ridge: [encoder.name=ridge]", "ridge: [encoder.name=rdge]"), "did you mean 'ridge'"),
        (("jobs: 2", "jobs: 0"), "jobs must be a whole number from 1"),
        (("jobs: 2", "job: 2"), "unknown key 'job'"),
        (("variants:", "variant:"), "unknown key groups.tiny.variant .*groups.tiny.variants has no value"),
    ],
)
def test_a_wrong_sweep_is_one_sentence(file, tmp_path, change, words):
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(ConfigError, match=words):
        check_runs(runs_of(read_sweep(file), tmp_path))


def test_no_run_fits(file, tmp_path, capsys):
    assert sweep(file, tmp_path, "--only", "nothing") == 2
    assert "names look like tiny/ridge/within_subject/sub-01/seed-0" in capsys.readouterr().err


def test_slurm_without_a_cluster_is_one_sentence(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    words = ["sweep", str(file), "--out", str(tmp_path / "out"), "--skip-data", "--executor", "slurm"]
    assert main(words) == 2
    assert "needs the command sbatch" in capsys.readouterr().err


@pytest.mark.slow
def test_two_workers_share_the_runs_out(file, tmp_path):
    words = ["sweep", str(file), "--out", str(tmp_path / "out"), "--skip-data", "--only", "*/seed-0"]
    assert main(words) == 0
    assert len(list((tmp_path / "out").rglob("evaluate/manifest.json"))) == 8
