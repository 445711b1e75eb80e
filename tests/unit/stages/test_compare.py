import pytest

from eegrecon.cli import main
from tests.builders_scores import N, build_scores

pytestmark = pytest.mark.usefixtures("clean_rank")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, strength in (("weak", 0.5), ("strong", 2.5)):
        for subject in (1, 2):
            run = tmp_path / "runs" / name / f"sub-{subject:02d}" / "seed-0"
            build_scores(run, subject=subject, strength=strength)
    return tmp_path


def test_one_table_best_first(runs, capsys):
    assert main(["compare", "runs/weak", "runs/strong/sub-*/seed-0"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "│ weak" in line or "│ strong" in line]
    assert ["strong" in line for line in lines] == [True, False, True, False]  # two tables
    assert "pocket test · within_subject · gallery of 20 (exact picture) · 12 repetitions averaged · 3 channels" in out
    flat = " ".join(out.split())
    assert "[95 %] by crossed bootstrap over pictures; other subjects may differ: fewer than 5 were tested" in flat
    assert "it cannot be below 0.5 with 2 subjects that differ" in flat
    table = (runs / "comparison" / "table.csv").read_text().splitlines()
    assert table[0].startswith("run,metric,value,low,high,over,subjects,seeds,difference")
    assert any(line.startswith(f"strong,test/retrieval_top1_{N}way,") for line in table)
    assert (runs / "comparison" / "table.png").read_bytes().startswith(b"\x89PNG")
    assert "each subject" in (runs / "comparison" / "table.txt").read_text()
    assert (runs / "comparison" / "subjects.csv").read_text().startswith("run,metric,subject,value")


def test_unlike_runs_are_not_ranked_unless_allowed(runs, capsys):
    for subject in (1, 2):
        run = runs / "runs" / "fewer" / f"sub-{subject:02d}" / "seed-0"
        build_scores(run, subject=subject, repetitions=1, selection="last epoch")
    assert main(["compare", "runs/weak", "runs/fewer", "--allow", "repetitions"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "eegrecon: compare: weak and fewer differ in selection (best val/retrieval_top1_60way against last epoch): "
        "not ranked.",
        "eegrecon: compare: evaluate them alike, or rank them all the same with --allow selection",
    ]
    assert not (runs / "comparison").exists()
    allow = ["--allow", "repetitions", "--allow", "selection"]
    assert main(["compare", "runs/weak", "runs/fewer", *allow, "--out", "here"]) == 0
    assert "not of one protocol: weak and fewer differ in repetitions (12 against 1)" in capsys.readouterr().out
    assert (runs / "here" / "table.csv").is_file()


def test_chosen_numbers_and_one_run_alone(runs, capsys):
    assert main(["compare", "runs/weak", "--metric", "test/retrieval_top1_2way"]) == 0
    out = capsys.readouterr().out
    assert " top1_2way ┃" in out
    assert "mrr" not in out
    assert "Wilcoxon" not in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["runs/weak", "--allow", "gallry"],
            "--allow gallry is no field of the protocol: choose from set, split, training",
        ),
        (
            ["runs/weak", "--metric", "acc"],
            "--metric acc: not all of these runs have it; they share test/retrieval_top1",
        ),
        (["runs/no*"], "Nothing fits 'runs/no*': name finished runs"),
        (["runs/no"], "runs/no does not exist: name a run"),
        (["runs/weak", "--draws", "5"], "--draws is 5, expected at least 100"),
    ],
)
def test_what_is_wrong_is_one_sentence(runs, capsys, words, sentence):
    assert main(["compare", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert sentence in line
