"""The THINGS experiments as they ship, on look-alikes with the real names, layouts and embedding sizes."""

import json
from pathlib import Path

import pytest

from eegrecon.analysis.protocol import Protocol
from eegrecon.cli import main
from eegrecon.data import ImageSet, TrialStore

pytestmark = [pytest.mark.usefixtures("clean_rank")]
SIZE = ["--concepts", "6", "--test-concepts", "3", "--size", "16", "--signal", "noise", "--test-repetitions", "12"]
FEATURES = [
    f"targets.{kind}-vit-h-14.model.{key}" for kind in ("clip", "text") for key in ("name=feature_file", "args.folder=")
]
TRAINING = ["data.split.val_concepts=2", "loader.batch_size=8", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
LAYOUTS = {
    "things_eeg2": ("preprocessed", 8, [], 63, 250, "mvnn"),
    "things_meg": ("meg_fif", 1, ["--exemplars", "2"], 271, 201, "zscore"),
}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("set_name", LAYOUTS)
def test_published_files_to_a_trained_encoder(tmp_path, monkeypatch, set_name):
    layout, subject, more, n_chans, n_times, unit = LAYOUTS[set_name]
    home, exp = tmp_path / "data" / set_name, ["--exp", f"{set_name}/atm_s"]
    monkeypatch.chdir(tmp_path)
    assert main(["look-alike", "--layout", layout, "--out", str(home), "--subject", str(subject), *SIZE, *more]) == 0
    features = [word + str(home) if word.endswith("=") else word for word in FEATURES]
    assert main(["prepare-data", *exp]) == 0
    assert main(["extract-targets", *exp, *features]) == 0
    assert main(["train-encoder", *exp, *TRAINING]) == 0
    store = TrialStore(home / "trials" / f"sub-{subject:02d}", ImageSet.from_root(home))
    assert (len(store.ch_names), store.n_times, store.unit) == (n_chans, n_times, unit)
    encoder = tmp_path / "runs" / set_name / "atm_s" / f"sub-{subject:02d}" / "seed-0" / "encoder"
    manifest = json.loads((encoder / "manifest.json").read_text())
    assert manifest["interface"]["dim"] == 1024
    assert manifest["data"]["n_times"] == n_times
    assert "val/retrieval_top1_2way" in json.loads((encoder / "metrics.json").read_text())["metrics"]
    curve = ["averaging_curve=[1,12]", "data.split.val_concepts=2"]
    assert main(["evaluate", *exp, *curve]) == 0
    payload = json.loads((encoder.parent / "evaluate" / "metrics.json").read_text())
    for task in ("retrieval", "classification"):
        assert {f"test/{task}_top1_3way", f"test/{task}_top1_3way_ridge"} <= set(payload["metrics"])
    stamp = Protocol.from_metrics(payload["protocol"])
    assert (stamp.subjects, stamp.repetitions, len(stamp.channels)) == ((subject,), 12, n_chans)
    assert [entry["repetitions"] for entry in payload["averaging_curve"]] == [1, 12]


POCKET = Path(__file__).resolve().parents[2] / "experiments" / "pocket"
CHAIN = {
    "prepare-data": "source: {{name: raw, args: {{path: {home}/Raw_data}}}}\n",
    "extract-targets": "extends: {pocket}/extract-targets.yaml\n",
    "encoder": "extends: {pocket}/encoder.yaml\nloader: {{batch_size: 32}}\ntrainer: {{max_epochs: 2}}\n",
    "prior": "extends: {pocket}/prior.yaml\nloader: {{batch_size: 32}}\ntrainer: {{max_epochs: 5}}\n",
    "reconstruct": "extends: {pocket}/reconstruct.yaml\ngenerator: {{args: {{num_inference_steps: 2}}}}\n",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_raw_sessions_to_pictures(tmp_path, monkeypatch):
    """Continuous recordings of the pocket brain, through preprocessing, to reconstructed pictures."""
    monkeypatch.chdir(tmp_path)
    home, exp = tmp_path / "data" / "things_eeg2", tmp_path / "exp"
    counts = ["--concepts", "30", "--exemplars", "4", "--test-concepts", "12", "--test-repetitions", "8"]
    assert main(["look-alike", "--layout", "raw", "--out", str(home), "--gap", "0.5", *counts]) == 0
    exp.mkdir()
    for stage, text in CHAIN.items():
        data = "data: {{set: things_eeg2, root: {root}{more}}}\n"
        more = "" if stage == "extract-targets" else ", subjects: [1]"
        more += ", split: {val_concepts: 6}" if stage in ("encoder", "prior", "reconstruct") else ""
        (exp / f"{stage}.yaml").write_text(
            (text + data).format(home=home, root=tmp_path / "data", more=more, pocket=POCKET), encoding="utf-8"
        )
    for verb in ("prepare-data", "extract-targets", "train-encoder", "train-prior", "reconstruct"):
        config = exp / f"{verb.removeprefix('train-')}.yaml"
        assert main([verb, "--config", str(config)]) == 0, verb
    out = tmp_path / "runs" / "exp" / "sub-01" / "seed-0" / "reconstruct"
    assert len(list((out / "pictures").iterdir())) == 12
    assert "test/retrieval_top1_12way" in json.loads((out / "metrics.json").read_text())["metrics"]
