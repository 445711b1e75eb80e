"""From evaluated runs to a comparison, and the same numbers from the files alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from eegrecon.cli import main
from eegrecon.config import load
from eegrecon.stages import evaluate
from tests import builders
from tests.builders_runs import build_run

pytestmark = pytest.mark.usefixtures("clean_rank")
EVALUATE = Path(__file__).resolve().parents[2] / "experiments" / "pocket" / "evaluate.yaml"
N = 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(builders, "NOISE_UV", 6.0)
        builders.build_tiny_set(home / "data", test_concepts=N)
    words = [f"data.root={home / 'data'}", "data.split.val_concepts=2", "pictures=false"]
    for name in ("plain", "control"):
        run = home / "runs" / name / "sub-01" / "seed-0"
        build_run(home / "data", run, permute_labels=name == "control")
        evaluate.run(load("evaluate", None, EVALUATE, words), directory=run / "evaluate", command="test")
    single = load("evaluate", None, EVALUATE, [*words, "data.keep_repetitions=1"])
    (run / "again").mkdir()
    (run / "again" / "encoder").symlink_to(run / "encoder")
    evaluate.run(single, directory=run / "again" / "evaluate", command="test")
    return home


def test_what_evaluate_wrote_is_compared(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert main(["compare", "runs/control/sub-01/seed-0/evaluate", "runs/plain", "--out", "table"]) == 0
    out = capsys.readouterr().out
    first = next(line for line in out.splitlines() if "│ " in line and "run" not in line)
    assert "plain" in first
    rows = (runs / "table" / "subjects.csv").read_text().splitlines()
    metrics = json.loads((runs / "runs/plain/sub-01/seed-0/evaluate/metrics.json").read_text())["metrics"]
    name = f"test/retrieval_top1_{N}way_ridge"
    assert f"plain,{name},1,{metrics[name]['value']:.6g}" in rows


def test_single_trials_are_not_ranked_with_means(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert main(["compare", "runs/plain", "runs/control/sub-01/seed-0/again"]) == 2
    assert "differ in repetitions (3 against 1): not ranked." in capsys.readouterr().err


def test_files_alone_give_the_same_numbers(runs, monkeypatch):
    monkeypatch.chdir(runs)
    stage = runs / "runs/plain/sub-01/seed-0/evaluate"
    images = str(runs / "data/pocket/targets/clip-pocket/test.npy")
    eeg = str(stage / "embeds" / "test.safetensors")
    assert main(["evaluate", "--eeg-embeds", eeg, "--image-embeds", images, "--out", "foreign"]) == 0
    theirs = json.loads((runs / "foreign" / "metrics.json").read_text())["metrics"]
    ours = json.loads((stage / "metrics.json").read_text())["metrics"]
    assert set(theirs) == {name for name in ours if "_ridge" not in name}
    for name, entry in theirs.items():
        assert entry["value"] == pytest.approx(ours[name]["value"]), name
    assert np.load(images).shape[0] == N
