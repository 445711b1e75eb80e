"""Stage 3 from finished encoder and prior directories to pictures, grids and scores, on the tiny set."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eegrecon.analysis.protocol import Protocol
from eegrecon.analysis.ranks import load_ranks
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.config import load
from eegrecon.data import ImageSet
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.metrics.features import picture_tensor
from eegrecon.stages import evaluate, reconstruct
from tests.builders import build_tiny_set
from tests.builders_runs import build_run, write_text_store
from tests.builders_sdxl import tiny_sdxl
from tests.contract.test_no_test_data import hide_test_files

pytestmark = pytest.mark.usefixtures("clean_rank")
EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "pocket"
N = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_tiny_set(home / "data", test_concepts=N)
    tiny_sdxl(home / "sdxl", dim=256, conditioning={"model": "pocket_clip", "weights_tag": "tiny", "dim": 256})
    build_run(home / "data", home / "run")
    return home


def network(pictures):
    """Coarse pixels, instead of EfficientNet-Lite2 and the pocket CLIP."""
    return picture_tensor(pictures, 4).flatten(1)


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(evaluate, "load_judge", lambda name: network)
        monkeypatch.setattr(evaluate, "load_target_space", lambda interface: network)
        yield


def config(home, verb="reconstruct", *overrides):
    shared = [f"data.root={home / 'data'}", "data.split.val_concepts=2"]
    if verb == "reconstruct":
        generator = f"generator.args={{base: {home / 'sdxl'}, num_inference_steps: 2, guidance_scale: 2.0, size: 16}}"
        shared += [generator, "sample.num_inference_steps=3", "batch_size=4", "trainer.accelerator=cpu"]
        shared += ["trainer.enable_progress_bar=false"]
    return load(verb, file=EXPERIMENT / f"{verb}.yaml", overrides=[*shared, *overrides])


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=int)


def go(home, directory, *overrides, **keywords):
    return reconstruct.run(config(home, "reconstruct", *overrides), directory=directory, command="test", **keywords)


@pytest.fixture(scope="module")
def done(home, small_networks):
    go(home, home / "run" / "reconstruct")
    return home / "run" / "reconstruct"


def test_the_scores_of_each_picture_are_a_table(home, done):
    rows = list(csv.DictReader((done / "scores.csv").read_text().splitlines()))
    metrics = json.loads((done / "metrics.json").read_text())["metrics"]
    names = [name for name in rows[0] if not name.startswith("image_")]
    assert set(names) >= {"two_way_efflite2", "pixcorr", "ssim", "prior_cosine"}
    for name in names:
        mean = np.mean([float(row[name]) for row in rows])
        assert mean == pytest.approx(metrics[f"test/{name}"]["value"], abs=1e-6), name
    embeds = load_embeds(done / "embeds" / "test.safetensors")
    assert [int(row["image_index"]) for row in rows] == embeds["image_index"].tolist()
    assert all(row["image_id"].startswith("test/") for row in rows)


def test_pictures_of_held_out_concepts_open_no_test_file(home, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(home / "data", data)
    hide_test_files(data / "pocket")
    run = tmp_path / "run"
    run.mkdir()
    for stage in ("encoder", "prior"):
        (run / stage).symlink_to(home / "run" / stage)
    manifest = go(home, run / "reconstruct-val", "part=val", f"data.root={data}")
    images = ImageSet.from_root(home / "data" / "pocket")
    embeds = load_embeds(run / "reconstruct-val" / "embeds" / "val.safetensors")
    concepts = [images.concept_of(int(index)) for index in embeds["image_index"]]
    assert len(concepts) == len(set(concepts)) == 2
    assert set(embeds["image_index"]) <= set(images.train_index)
    assert len(list((run / "reconstruct-val" / "pictures").iterdir())) == 2
    assert "val/two_way_efflite2_ceiling" in manifest.metrics
    assert not [name for name in manifest.metrics if name.startswith("test/")]
    payload = json.loads((run / "reconstruct-val" / "metrics.json").read_text())
    assert Protocol.from_metrics(payload["protocol"]).split == "val"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.protocol=leave_one_subject_out", "data.subjects=[1,2]", "data.test_subject=2"), "within one subject"),
        (("permuted_run=/elsewhere",), "control of test pictures"),
    ],
)
def test_what_validation_pictures_have_not(home, tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=words):
        go(home, tmp_path / "reconstruct-val", "part=val", *overrides)


def test_everything_is_there(home, done):
    manifest = read_manifest(done)
    ids = [f"{i + 1:05d}_other_thing{i + 1:02d}__other_thing{i + 1:02d}_01b.png" for i in range(N)]
    for folder in ("pictures", "pictures_ceiling"):
        assert sorted(path.name for path in (done / folder).iterdir()) == ids
        assert all(f"{folder}/{name}" in manifest.outputs for name in ids)
    assert pixels(done / "pictures" / ids[0]).shape == (16, 16, 3)
    assert pixels(done / "grid.png").shape[1] > 3 * 128
    assert (done / "grid_by_score.png").is_file()
    assert list((done / "tensorboard").glob("events*"))
    embeds = load_embeds(done / "embeds" / "test.safetensors")
    assert embeds["eeg_embeds"].shape == (N, 256)
    assert embeds["pred_image_embeds"].shape == (N, 1, 256)
    assert embeds["repetition"].tolist() == [-1] * N
    assert set(manifest.inputs) == {"encoder", "prior", "targets", "trials", "generator"}
    assert not (done / "checkpoints").exists()


def test_metrics_have_their_names_intervals_and_chance(done):
    payload = json.loads((done / "metrics.json").read_text())
    metrics = payload["metrics"]
    wanted = {f"test/{name}{s}" for name in ("two_way_efflite2", "two_way_clip_pocket", "pixcorr", "ssim")
              for s in ("", "_ceiling", "_shuffled")}  # fmt: skip
    numbers = [
        "top1_2way",
        "top1_4way",
        *(f"{name}_{N}way" for name in ("top1", "top5", "mrr", "mean_rank", "median_rank")),
    ]
    wanted |= {f"test/retrieval_{number}{s}" for number in numbers for s in ("", "_ridge")}
    assert wanted | {"test/prior_cosine", "test/prior_cosine_shuffled"} == set(metrics)
    for entry in metrics.values():
        low, high = entry["ci95"]
        assert low <= entry["value"] <= high
    assert metrics["test/two_way_efflite2"]["chance"] == 0.5
    assert metrics[f"test/retrieval_top1_{N}way"]["chance"] == pytest.approx(1 / N)
    # the encoder is the ridge baseline here, and the tiny set is easy
    assert metrics[f"test/retrieval_top1_{N}way"]["value"] >= 0.5
    assert metrics[f"test/retrieval_top1_{N}way"] == metrics[f"test/retrieval_top1_{N}way_ridge"]
    protocol = payload["protocol"]
    assert protocol["permuted_labels"] is False
    assert protocol["repetitions"] == "test: mean of 3"
    assert protocol["n_pictures"] == N
    stamp = Protocol.from_metrics(protocol)
    assert (stamp.split, stamp.subjects, stamp.repetitions, stamp.gallery_n) == ("test", (1,), 3, N)
    ranks = load_ranks(done / "ranks.safetensors")
    assert float(ranks.rank().mean()) == metrics[f"test/retrieval_mean_rank_{N}way"]["value"]


def test_second_time_is_up_to_date_and_another_config_is_refused(home, done):
    before = (done / "manifest.json").read_bytes()
    go(home, done)
    assert (done / "manifest.json").read_bytes() == before
    with pytest.raises(ArtifactError, match=r"sample\.guidance_scale.*RUN=.*--overwrite"):
        go(home, done, "sample.guidance_scale=1.5")


def test_pictures_do_not_depend_on_batch_size_or_draws(home, done, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("reconstruct", "evaluate"))
    stale = run / "reconstruct" / "pictures" / "left_by_a_killed_run.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    go(home, run / "reconstruct", "batch_size=1", "draws=2")
    assert not stale.exists()
    for path in (done / "pictures").iterdir():
        first, second = pixels(path), pixels(run / "reconstruct" / "pictures" / path.name)
        assert np.abs(first - second).max() <= 1
        other = run / "reconstruct" / "pictures" / f"{path.stem}__draw-1.png"
        assert np.abs(first - pixels(other)).max() > 1
    assert json.loads((run / "reconstruct" / "metrics.json").read_text())["protocol"]["draws"] == 2


def test_evaluate_finds_the_same_numbers_on_disk(home, done):
    evaluate.run(config(home, "evaluate"), directory=home / "run" / "evaluate", command="test")
    first, second = (
        json.loads((home / "run" / stage / "metrics.json").read_text()) for stage in ("reconstruct", "evaluate")
    )
    assert first["metrics"] == second["metrics"]
    assert first["protocol"] == second["protocol"]
    assert read_manifest(home / "run" / "evaluate").inputs["reconstruct"]


def test_the_encoder_alone_finds_the_same_numbers(home, done, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("prior", "recon*", "evaluate"))
    evaluate.run(config(home, "evaluate", "pictures=false"), directory=run / "evaluate", command="test")
    full, alone = (json.loads((path / "metrics.json").read_text()) for path in (done, run / "evaluate"))
    names = [name for name in full["metrics"] if "retrieval" in name]
    assert alone["metrics"] == {name: full["metrics"][name] for name in names}
    assert alone["protocol"]["stamp"] == full["protocol"]["stamp"]


def test_pictures_are_scored_with_the_names_of_their_concepts_too(home, done, tmp_path):
    write_text_store(home / "data" / "pocket")
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    words = config(home, "evaluate", "text_target.name=text-pocket")
    manifest = evaluate.run(words, directory=run / "evaluate", command="test")
    assert manifest.inputs["text_targets"]["path"].endswith("text-pocket")
    added = set(manifest.metrics) - set(read_manifest(done).metrics)
    assert {f"test/classification_top1_{N}way", f"test/classification_top1_{N}way_ridge"} <= added
    assert all("classification" in name for name in added)
    assert load_ranks(run / "evaluate" / "ranks_text.safetensors").gallery == N


def test_any_prior_and_scheduler_are_called_alike(home, done, tmp_path):
    """Without a prior the EEG embedding itself is what the pictures are made of, in every draw."""
    run = build_run(home / "data", tmp_path / "run", prior="none")
    go(home, run / "reconstruct", "draws=2", "sample.scheduler.name=ddim")
    embeds = load_embeds(run / "reconstruct" / "embeds" / "test.safetensors")
    assert np.array_equal(embeds["pred_image_embeds"], embeds["eeg_embeds"][:, None].repeat(2, axis=1))
    run = shutil.copytree(home / "run", tmp_path / "other", ignore=shutil.ignore_patterns("recon*", "evaluate"))
    go(home, run / "reconstruct", "sample.scheduler.name=dpm_solver_multistep")
    usual, other = (load_embeds(path / "embeds" / "test.safetensors") for path in (done, run / "reconstruct"))
    assert np.array_equal(usual["eeg_embeds"], other["eeg_embeds"])
    assert not np.allclose(usual["pred_image_embeds"], other["pred_image_embeds"])
    protocol = json.loads((run / "reconstruct" / "metrics.json").read_text())["protocol"]
    assert protocol["prior"]["scheduler"] == {"name": "dpm_solver_multistep", "args": {}}


def test_permuted_run_is_reported_beside_the_scores(home, done, tmp_path):
    build_run(home / "data", tmp_path / "permuted", permute_labels=True)
    go(home, tmp_path / "permuted" / "reconstruct")
    other = json.loads((tmp_path / "permuted" / "reconstruct" / "metrics.json").read_text())
    assert other["protocol"]["permuted_labels"] is True
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    manifest = evaluate.run(
        config(home, "evaluate", f"permuted_run={tmp_path / 'permuted'}"), directory=run / "evaluate", command="test"
    )
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())["metrics"]
    assert metrics["test/two_way_efflite2_permuted_labels"] == other["metrics"]["test/two_way_efflite2"]
    assert "permuted_run" in manifest.inputs
    with pytest.raises(ArtifactError, match="permuted_labels is False there and True here"):
        evaluate.run(config(home, "evaluate", f"permuted_run={home / 'run'}"), directory=run / "other", command="test")


def test_what_does_not_belong_together_is_refused_in_one_sentence(home, tmp_path):
    with pytest.raises(ArtifactError, match="eegrecon train-encoder"):
        go(home, tmp_path / "empty" / "reconstruct")
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("reconstruct", "evaluate"))
    with pytest.raises(ArtifactError, match="normalised is False there and True here"):
        go(home, run / "reconstruct", "target.l2_normalise=true")
    with pytest.raises(ArtifactError, match="differ in split"):
        go(home, run / "reconstruct", "data.split.split_seed=5")
    with pytest.raises(ConfigError, match="one subject"):
        go(home, run / "reconstruct", "data.subjects=[1,2]")
    with pytest.raises(ConfigError, match=r"trainer\.logger cannot be set"):
        go(home, run / "reconstruct", "trainer.logger=true")
    other = tmp_path / "other"
    tiny_sdxl(other, dim=256, conditioning={"model": "ViT-H-14", "dim": 256})
    with pytest.raises(ArtifactError, match="model is 'ViT-H-14' in the generator and 'pocket_clip' in the target"):
        go(home, run / "reconstruct", f"generator.args.base={other}")
    model = run / "encoder" / "model.safetensors"
    blob = bytearray(model.read_bytes())
    blob[-1] ^= 1
    model.write_bytes(blob)
    with pytest.raises(ArtifactError, match="was changed after train-encoder finished"):
        go(home, run / "reconstruct")
    assert not (run / "reconstruct" / "manifest.json").exists()


def test_seed_changes_the_pictures_and_nothing_else_random_does(home, done, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("reconstruct", "evaluate"))
    torch.manual_seed(99)
    go(home, run / "reconstruct")
    name = next((done / "pictures").iterdir()).name
    assert (run / "reconstruct" / "pictures" / name).read_bytes() == (done / "pictures" / name).read_bytes()
    go(home, run / "reconstruct", "seed=1", overwrite=True)
    assert (run / "reconstruct" / "pictures" / name).read_bytes() != (done / "pictures" / name).read_bytes()


def test_a_batch_size_that_is_not_given_is_chosen_by_the_memory(home, done, tmp_path, monkeypatch, capsys):
    from eegrecon.models.generators.sdxl import SDXLGenerator
    from eegrecon.modules import picture_memory

    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("reconstruct", "evaluate"))
    sizes, forward = [], SDXLGenerator.forward

    def watched(self, image_embeds, **rest):
        sizes.append(len(image_embeds))
        if len(image_embeds) > limit:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes.")
        return forward(self, image_embeds, **rest)

    limit = 100
    monkeypatch.setattr(SDXLGenerator, "forward", watched)
    monkeypatch.setattr(picture_memory, "free_bytes", lambda device: 2**20)
    monkeypatch.setattr(picture_memory, "activation_bytes", lambda generator, size: size * 2**18 * 3 // 4)
    go(home, run / "reconstruct", "batch_size=0")
    assert "4 pictures at a time fit into the memory of cpu" in capsys.readouterr().err
    assert sizes == [4, 2, 4, 2]
    for path in (done / "pictures").iterdir():
        assert np.abs(pixels(path) - pixels(run / "reconstruct" / "pictures" / path.name)).max() <= 1
    limit = 3
    for size, says in ((0, "4 pictures: try batch_size=2"), (5, "5 pictures: try batch_size=2")):
        with pytest.raises(ConfigError, match=rf"not enough memory for a batch of {says}\.$"):
            go(home, run / "reconstruct", f"batch_size={size}", overwrite=True)
