"""The README's main command at reduced size: every shipped pocket YAML, every stage, the real pocket weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eegrecon.config import experiments_root

pytestmark = pytest.mark.weights

SPLIT = "  split: {val_concepts: 4, split_seed: 0}\n"
DATA = "data:\n  root: {root}\n"
SMALLER = {
    "prepare-data": "pictures: {train_concepts: 14, test_concepts: 5, exemplars: 2, size: 128}\n"
    "brain: {train_repetitions: 2, test_repetitions: 3}\n",
    "extract-targets": "",
    "encoder": "loader: {batch_size: 8}\ntrainer: {accelerator: cpu, max_epochs: 2}\n",
    "prior": "loader: {batch_size: 8}\ntrainer: {accelerator: cpu, max_epochs: 5}\n",
    "reconstruct": "generator: {args: {num_inference_steps: 2}}\nsample: {num_inference_steps: 20}\n"
    "trainer: {accelerator: cpu}\n",
    "evaluate": "",
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    """The pocket experiment with other sizes and another home for its data."""
    folder = tmp_path_factory.mktemp("chain")
    for name, smaller in SMALLER.items():
        data = DATA.format(root=folder / "data")
        if name not in ("prepare-data", "extract-targets"):
            data += SPLIT
        parent = experiments_root() / "pocket" / f"{name}.yaml"
        (folder / f"{name}.yaml").write_text(f"extends: {parent}\n{data}{smaller}")
    return folder


def eegrecon(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "eegrecon", *words], capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def run(experiment) -> Path:
    done = eegrecon(
        "reconstruct", "--config", f"{experiment}/reconstruct.yaml", "--upstream", "--run", f"{experiment}/run"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return experiment / "run"


def test_every_stage_left_a_manifest_and_no_checkpoints(experiment, run):
    for folder in (run / "encoder", run / "prior", run / "reconstruct", experiment / "data/pocket/trials/sub-01"):
        assert json.loads((folder / "manifest.json").read_text())["config_hash"]
        assert not (folder / "checkpoints").exists()


def test_the_promised_metrics_have_their_names(run):
    metrics = json.loads((run / "reconstruct" / "metrics.json").read_text())["metrics"]
    for name in ("two_way_efflite2", "two_way_clip_pocket"):
        assert {f"test/{name}", f"test/{name}_ceiling", f"test/{name}_shuffled"} <= set(metrics)
    for name in ("retrieval_top1_5way", "pixcorr", "ssim"):
        assert 0 <= abs(metrics[f"test/{name}"]["value"]) <= 1
    assert "test/retrieval_top1_5way_ridge" in metrics


def test_pictures_are_named_by_image_id_and_the_grid_is_there(experiment, run):
    images = json.loads((experiment / "data/pocket/images.json").read_text())
    ids = sorted(row["image_id"].rsplit("/", 1)[-1] for row in images if row["image_id"].startswith("test/"))
    made = sorted(path.stem for path in (run / "reconstruct" / "pictures").rglob("*.png"))
    assert len(made) == 5
    assert all(any(image_id in name for name in made) for image_id in ids)
    assert (run / "reconstruct" / "grid.png").stat().st_size > 10_000


def test_a_second_call_is_up_to_date(experiment, run):
    done = eegrecon("reconstruct", "--config", f"{experiment}/reconstruct.yaml", "--run", str(run))
    assert done.returncode == 0
    assert "up to date" in done.stdout + done.stderr


def test_evaluate_gives_the_same_numbers(experiment, run):
    done = eegrecon("evaluate", "--config", f"{experiment}/evaluate.yaml", "--run", str(run))
    assert done.returncode == 0, done.stderr[-3000:]
    first, again = (json.loads((run / s / "metrics.json").read_text())["metrics"] for s in ("reconstruct", "evaluate"))
    assert again["test/two_way_efflite2"]["value"] == pytest.approx(first["test/two_way_efflite2"]["value"], abs=1e-6)


def test_a_tampered_network_is_refused(experiment, run):
    weights = run / "encoder" / "model.safetensors"
    good = weights.read_bytes()
    try:
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        done = eegrecon("reconstruct", "--config", f"{experiment}/reconstruct.yaml", "--run", str(run), "--overwrite")
        assert done.returncode == 2
        assert "model.safetensors" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        weights.write_bytes(good)
