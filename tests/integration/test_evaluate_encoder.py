"""`evaluate` with `pictures=false`: a run that has an encoder and nothing else, under every protocol."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import eegrecon
from eegrecon.analysis.protocol import Protocol, gallery_hash, unlike
from eegrecon.analysis.ranks import load_ranks
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.cli import main
from eegrecon.config import load
from eegrecon.data import ImageSet, TargetStore, target_dir, trial_dir
from eegrecon.errors import ArtifactError, ConfigError, DataError
from eegrecon.stages import evaluate, train_encoder
from tests import builders
from tests.builders_runs import build_run, write_text_store

pytestmark = pytest.mark.usefixtures("clean_rank")
EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "pocket"
N = 12
NOISE = 6.0  # so much that pictures are found neither always nor by chance alone
LOSO = ("data.protocol=leave_one_subject_out", "data.subjects=[1,2,3]", "data.split.val_concepts=4")
JOINT = ("data.protocol=joint", "data.subjects=[1,2,3]", "data.split.val_concepts=4")
TRAINER = "trainer={accelerator: cpu, devices: 1, max_epochs: 1, enable_progress_bar: false, num_sanity_val_steps: 0}"
TEXT = "text_target.name=text-pocket"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(builders, "NOISE_UV", NOISE)
        root = builders.build_tiny_set(home / "data", test_concepts=N, subjects=(1, 2, 3))
    write_text_store(root)
    build_run(home / "data", home / "run")
    shutil.rmtree(home / "run" / "prior")
    return home


def config(home, *overrides, subject=None, verb="evaluate"):
    shared = [f"data.root={home / 'data'}", "data.split.val_concepts=2"]
    shared += ["pictures=false"] if verb == "evaluate" else []
    file = EXPERIMENT / f"{verb.removeprefix('train-')}.yaml"
    return load(verb, None, file, [*shared, *overrides], subject)


def go(home, directory, *overrides, subject=None, **keywords):
    return evaluate.run(config(home, *overrides, subject=subject), directory=directory, command="test", **keywords)


def payload_of(directory):
    return json.loads((directory / "metrics.json").read_text())


@pytest.fixture(scope="module")
def done(home):
    go(home, home / "run" / "evaluate", TEXT, "averaging_curve=[1,3]")
    return home / "run" / "evaluate"


def test_the_numbers_are_those_of_the_arrays_on_disk(home, done):
    root = home / "data" / "pocket"
    images = ImageSet.from_root(root)
    raw = np.load(trial_dir(root, 1) / "test_eeg.npy").astype(np.float32).mean(1)
    with torch.inference_mode():
        eeg_embeds = eegrecon.load(home / "run" / "encoder")(torch.from_numpy(raw), torch.ones(N, dtype=torch.long))
    found = load_embeds(done / "embeds" / "test.safetensors")
    np.testing.assert_allclose(found["eeg_embeds"], eeg_embeds.numpy(), atol=1e-4)
    assert found["image_index"].tolist() == images.test_index.tolist()
    assert (set(found["subject"]), set(found["repetition"])) == ({1}, {-1})
    np.testing.assert_allclose(found["ridge_embeds"], found["eeg_embeds"], atol=1e-4)  # ridge is the encoder here
    metrics = payload_of(done)["metrics"]
    for task, name in (("retrieval", "clip-pocket"), ("classification", "text-pocket")):
        gallery = TargetStore(target_dir(root, name), images).rows(images.test_index).astype(float)
        cosine = eeg_embeds.numpy() @ gallery.T / np.linalg.norm(gallery, axis=1)
        place = [int((row > row[i]).sum()) + 1 for i, row in enumerate(cosine)]
        for suffix in ("", "_ridge"):
            want = {f"top1_{N}way": np.mean(np.array(place) == 1), f"top5_{N}way": np.mean(np.array(place) <= 5)}
            want |= {f"mean_rank_{N}way": np.mean(place), f"mrr_{N}way": np.mean([1 / p for p in place])}
            want |= {f"median_rank_{N}way": np.median(place), "top1_2way": np.mean([(N - p) / (N - 1) for p in place])}
            for number, value in want.items():
                assert metrics[f"test/{task}_{number}{suffix}"]["value"] == pytest.approx(value), (task, number)
        assert 1.2 < want[f"mean_rank_{N}way"] < (N + 1) / 2


def test_everything_is_there(home, done):
    manifest = read_manifest(done)
    ranks = {f"ranks{key}.safetensors" for key in ("", "_ridge", "_text", "_text_ridge")}
    assert set(manifest.outputs) == {"config.yaml", "metrics.json", "embeds/test.safetensors", *ranks}
    assert set(manifest.inputs) == {"encoder", "targets", "trials", "text_targets"}
    assert manifest.data["test_subjects"] == [1]
    metrics = payload_of(done)["metrics"]
    assert manifest.metrics == {name: entry["value"] for name, entry in metrics.items()}
    names = [f"top1_{k}way" for k in (2, 4, 10, N)] + [f"top5_{k}way" for k in (10, N)]
    names += [f"{name}_{N}way" for name in ("mrr", "mean_rank", "median_rank")]
    tasks = ("retrieval", "classification")
    assert set(metrics) == {f"test/{task}_{name}{s}" for task in tasks for name in names for s in ("", "_ridge")}
    found = load_ranks(done / "ranks.safetensors")
    assert (found.gallery, len(found.better)) == (N, N)
    assert float(found.rank().mean()) == metrics[f"test/retrieval_mean_rank_{N}way"]["value"]


def test_the_stamp_says_what_was_asked(home, done):
    protocol = payload_of(done)["protocol"]
    stamp = Protocol.from_metrics(protocol)
    images = ImageSet.from_root(home / "data" / "pocket")
    assert (stamp.set, stamp.split, stamp.training, stamp.subjects) == ("pocket", "test", "within_subject", (1,))
    assert (stamp.gallery_kind, stamp.gallery_n) == ("exact picture", N)
    assert stamp.gallery_sha256 == gallery_hash(images.ids(images.test_index))
    assert (stamp.repetitions, stamp.window, stamp.sfreq, len(stamp.channels)) == (3, (0.0, 1.0), 250.0, 63)
    assert protocol["permuted_labels"] is False
    assert protocol["repetitions"] == "test: mean of 3"


def test_averaging_more_trials_is_a_curve(home, done, tmp_path):
    payload = payload_of(done)
    one, three = payload["averaging_curve"]
    assert (one["repetitions"], three["repetitions"]) == (1, 3)
    names = {f"test/retrieval_top{k}_{N}way{s}" for k in (1, 5) for s in ("", "_ridge")}
    assert set(one["metrics"]) == names
    assert three["metrics"] == {name: payload["metrics"][name] for name in names}
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    go(home, run / "evaluate", "data.keep_repetitions=1")
    first = payload_of(run / "evaluate")
    assert one["metrics"] == {name: first["metrics"][name] for name in names}
    assert one["metrics"] != three["metrics"]
    stamps = [Protocol.from_metrics(p["protocol"]) for p in (payload, first)]
    assert unlike(*stamps) == ["repetitions: 3 against 1"]
    with pytest.raises(DataError, match=r"asks for repetition 3, but .*test_eeg\.npy has 3"):
        go(home, run / "evaluate", "averaging_curve=[4]", overwrite=True)
    with pytest.raises(ConfigError, match=r"averaging_curve is \[1, 1\], expected different numbers of trials from 1"):
        go(home, run / "evaluate", "averaging_curve=[1,1]", overwrite=True)
    with pytest.raises(ConfigError, match=r"but data\.keep_repetitions is 2: leave one of them out"):
        go(home, run / "evaluate", "averaging_curve=[1]", "data.keep_repetitions=2", overwrite=True)
    with pytest.raises(ConfigError, match=r"averaging_curve is \[1\], but reconstructions are of all trials"):
        go(home, run / "evaluate", "averaging_curve=[1]", "pictures=true", overwrite=True)


def test_second_time_is_up_to_date_and_another_config_is_refused(home, done):
    before = (done / "manifest.json").read_bytes()
    go(home, done, TEXT, "averaging_curve=[1,3]")
    assert (done / "manifest.json").read_bytes() == before
    with pytest.raises(ArtifactError, match=r"finished result that differs .* in .*text_target\.name.*--overwrite"):
        go(home, done, "averaging_curve=[1,3]")
    with pytest.raises(ArtifactError, match=r"reconstruct does not exist: make it first with `eegrecon reconstruct`"):
        go(home, home / "run" / "other", "pictures=true")


@pytest.mark.parametrize("protocol", [LOSO, JOINT], ids=["leave_one_subject_out", "joint"])
def test_several_subjects(home, tmp_path, protocol):
    more = ["encoder={name: ridge}", "loader.batch_size=8", "data.repetitions=each", TRAINER]
    for subject in (3, 2) if protocol is JOINT else (3,):
        cfg = config(home, *protocol, *more, subject=subject, verb="train-encoder")
        train_encoder.run(cfg, directory=tmp_path / "encoder", command="test")
        done = tmp_path / ("evaluate" + (f"-sub-{subject:02d}" if protocol is JOINT else ""))
        go(home, done, *protocol, subject=subject)
        assert set(load_embeds(done / "embeds" / "test.safetensors")["subject"]) == {subject}
        stamp = Protocol.from_metrics(payload_of(done)["protocol"])
        assert (stamp.training, stamp.subjects) == (protocol[0].partition("=")[2], (subject,))
        assert read_manifest(done).inputs["trials"]["path"].endswith(f"sub-{subject:02d}")
    val = Protocol.from_metrics(payload_of(tmp_path / "encoder")["protocol"])
    trained = (1, 2, 3) if protocol is JOINT else (1, 2)
    assert (val.split, val.subjects, val.gallery_kind, val.gallery_n) == ("val", trained, "one per concept", 4)
    assert (val.repetitions, val.selection) == (2, "best val/retrieval_top1_4way")
    if protocol is LOSO:
        with pytest.raises(
            ArtifactError, match=r"made with data\.subjects \[1, 2\], but this config asks for \[1, 3\]"
        ):
            go(home, tmp_path / "evaluate", *protocol, subject=2)
    else:
        with pytest.raises(ConfigError, match=r"evaluate scores .* of one subject at a time, .* --subject N"):
            go(home, tmp_path / "evaluate", *protocol)


def test_the_control_is_reported_beside_the_numbers(home, tmp_path):
    build_run(home / "data", tmp_path / "permuted", permute_labels=True)
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    words = (f"permuted_run={tmp_path / 'permuted'}",)
    with pytest.raises(ArtifactError, match=r"permuted.evaluate does not exist.*`eegrecon evaluate pictures=false`"):
        go(home, run / "evaluate", *words)
    go(home, tmp_path / "permuted" / "evaluate")
    go(home, run / "evaluate", *words)
    metrics, other = (payload_of(path / "evaluate")["metrics"] for path in (run, tmp_path / "permuted"))
    name = f"test/retrieval_mean_rank_{N}way"
    assert metrics[f"{name}_permuted_labels"] == other[name]
    assert metrics[name]["value"] < other[name]["value"]
    with pytest.raises(ArtifactError, match="permuted_labels is False there and True here"):
        go(home, run / "again", f"permuted_run={run}")


def test_what_does_not_belong_together_is_refused_in_one_sentence(home, tmp_path):
    with pytest.raises(ArtifactError, match=r"encoder does not exist: make it first with `eegrecon train-encoder`"):
        go(home, tmp_path / "empty" / "evaluate")
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    with pytest.raises(ConfigError, match=r"'clip-pocket', whose vectors are of kind image and shape \(256,\)"):
        go(home, run / "evaluate", "text_target.name=clip-pocket")
    write_text_store(home / "data" / "pocket", "text-small", dim=8)
    with pytest.raises(ConfigError, match=r"of kind text and shape \(8,\), but .* of shape \(256,\)"):
        go(home, run / "evaluate", "text_target.name=text-small")
    with pytest.raises(ArtifactError, match="normalised is False there and True here"):
        go(home, run / "evaluate", "target.l2_normalise=true")
    with pytest.raises(ArtifactError, match="differ in channels"):
        go(home, run / "evaluate", "data.channels={region: occipital}")
    with pytest.raises(ConfigError, match="one subject"):
        go(home, run / "evaluate", "data.subjects=[1,2]")
    assert not (run / "evaluate" / "manifest.json").exists()
    broken = load_file(run / "encoder" / "model.safetensors")
    broken["encoder.linear.bias"] *= float("nan")
    save_file(broken, run / "encoder" / "model.safetensors")
    with pytest.raises(ArtifactError, match="was changed after train-encoder finished"):
        go(home, run / "evaluate")


def test_a_run_without_a_baseline_is_scored_alone(home, tmp_path):
    words = ("encoder={name: ridge}", "baseline_ridge=false", TRAINER)
    cfg = config(home, *words, verb="train-encoder")
    train_encoder.run(cfg, directory=tmp_path / "encoder", command="test")
    go(home, tmp_path / "evaluate")
    assert not [name for name in payload_of(tmp_path / "evaluate")["metrics"] if name.endswith("_ridge")]
    assert "ridge_embeds" not in load_embeds(tmp_path / "evaluate" / "embeds" / "test.safetensors")
    assert not (tmp_path / "evaluate" / "ranks_ridge.safetensors").exists()


def test_the_command_prints_the_table(home, tmp_path, capsys):
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    words = [f"data.root={home / 'data'}", "data.split.val_concepts=2", "pictures=false"]
    assert main(["evaluate", "--exp", "pocket", "--run", str(run), *words]) == 0
    out = capsys.readouterr().out
    assert f"pocket subject 1: {N} test pictures, each the mean of 3 trials" in out
    assert f"retrieval_top1_{N}way" in out
    assert "ridge" in out
    assert "ceiling" not in out
