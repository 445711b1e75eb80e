"""The lists of runs in benchmarks/ are configs that load, and the tables made of them say what the files say."""

import csv
import json
import re
import runpy
from pathlib import Path

import pytest
import torch

from eegrecon.analysis.ranks import QueryRanks, save_ranks
from eegrecon.config import load, parse_yaml

ROOT = Path(__file__).parents[2] / "benchmarks"
LISTS = sorted(ROOT.glob("*.yaml"))


def test_all_of_them_are_found():
    assert [path.name for path in LISTS] == ["pathways.yaml", "pathways_val.yaml"]


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_every_row_is_a_config(path):
    plan = parse_yaml(path.read_text(encoding="utf-8"))
    assert plan["reference"] in plan["rows"]
    for row, words in plan["rows"].items():
        assert set(words) <= {"prior", "reconstruct"}, row
        load("train-prior", plan["experiment"], None, words.get("prior", []))
        load("reconstruct", plan["experiment"], None, words.get("reconstruct", []))


def test_the_table_by_hand(tmp_path):
    table = runpy.run_path(str(ROOT / "pathways.py"))["table"]
    plan = {"seeds": [0, 1], "reference": "prior", "metrics": ["pixcorr"]}
    scores = {"prior": ([0.1, 0.3], [0.3, 0.5]), "both": ([0.2, 0.6], [0.2, 0.6]), "unfinished": ([0.0, 0.0],)}
    for row, seeds in scores.items():
        for seed, values in enumerate(seeds):
            folder = tmp_path / row / f"seed-{seed}" / "reconstruct"
            folder.mkdir(parents=True)
            with (folder / "scores.csv").open("w", newline="") as file:
                csv.writer(file).writerows(
                    [["image_index", "image_id", "pixcorr"], [0, "a", values[0]], [1, "b", values[1]]]
                )
            metrics = {"test/pixcorr_ceiling": {"value": 0.5 + seed}}
            outputs = {f"ranks_caption{end}.safetensors": {} for end in ("", "_ceiling", "_shuffled")}
            (folder / "manifest.json").write_text(json.dumps({"outputs": outputs if row == "both" else {}}))
            (folder / "metrics.json").write_text(json.dumps({"metrics": metrics}))
            if row == "both":  # of two names the right one is first for one picture, and for both of the true ones
                for end, better in (("", [0, 1]), ("_ceiling", [0, 0]), ("_shuffled", [1, 1])):
                    image, subject = torch.arange(2), torch.ones(2, dtype=torch.int64)
                    ranks = QueryRanks(image, subject, torch.tensor(better), torch.zeros(2, dtype=torch.int64), 2)
                    save_ranks(folder / f"ranks_caption{end}.safetensors", ranks)
    lines = table(plan, list(scores), tmp_path, "test").splitlines()
    assert len(lines) == 4  # two of head, two rows: what is not finished is left out
    assert lines[2].startswith("| prior | 0.300 [")
    assert "; ceiling 1.000; shuffled –" in lines[2]
    assert lines[2].endswith("| – | – |")
    assert "| 0.400 [" in lines[3]
    assert "difference +0.100 [" in lines[3]
    for cell in lines[3].split(" | ")[-2:]:
        assert re.match(r"0\.500 \[.*\]; ceiling 1\.000 \[.*\]; shuffled 0\.000 \[", cell)


def test_a_row_has_its_own_prior_or_that_of_the_reference(tmp_path):
    module = runpy.run_path(str(ROOT / "pathways.py"))
    run_row, said = module["run_row"], []

    def call(words):
        said.append(words[0])
        if words[0] == "train-prior":
            (Path(words[words.index("--run") + 1]) / "prior").mkdir(exist_ok=True)

    run_row.__globals__["call"] = call
    plan = {"experiment": "pocket", "subject": 1, "seeds": [0], "reference": "prior", "runs": "nowhere"}
    plan["rows"] = {"prior": {}, "mlp": {"prior": ["prior.name=mlp"]}, "words": {}}
    for _ in range(2):  # before the reference is there; a second try says the same
        with pytest.raises(SystemExit, match="leads nowhere: make the row 'prior' first"):
            run_row(plan, "words", 0, tmp_path, "test")
    for row in ("prior", "mlp", "words"):
        run_row(plan, row, 0, tmp_path, "test")
    assert said == ["train-prior", "reconstruct", "train-prior", "reconstruct", "reconstruct"]
    prior = {row: tmp_path / row / "seed-0" / "prior" for row in plan["rows"]}
    assert prior["words"].resolve() == prior["prior"].resolve()
    assert not prior["mlp"].is_symlink()
    plan["rows"] = {"prior": {}, "mlp": {}, "words": {"prior": []}}
    run_row(plan, "words", 0, tmp_path, "test")
    assert not prior["words"].is_symlink()
    with pytest.raises(SystemExit, match="in which 'mlp' had a prior of its own"):
        run_row(plan, "mlp", 0, tmp_path, "test")
