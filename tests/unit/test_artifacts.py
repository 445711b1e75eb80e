import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from eegrecon import artifacts
from eegrecon.artifacts import (
    Manifest,
    atomic_write,
    input_record,
    load_embeds,
    new_manifest,
    open_stage,
    read_manifest,
    require_interface,
    save_embeds,
    sha256_file,
    write_manifest,
)
from eegrecon.config import config_hash, to_yaml
from eegrecon.errors import ArtifactError

pytestmark = pytest.mark.usefixtures("clean_rank")
CONFIG = {"optim": {"lr": 0.1}, "seed": 0}


def claim(directory: Path, config=CONFIG, inputs=None, *, stage="train-encoder", overwrite=False) -> str:
    return open_stage(directory, stage, config_hash(config), to_yaml(config), inputs or {}, overwrite)


def finish(directory: Path, config=CONFIG, inputs=None, stage="train-encoder", **fields) -> Manifest:
    np.save(directory / "out.npy", np.arange(6).reshape(2, 3))
    manifest = new_manifest(stage, command="eegrecon x", config_hash=config_hash(config), seed=0)
    manifest.outputs, manifest.inputs = {"out.npy": {}}, dict(inputs or {})
    for name, value in fields.items():
        setattr(manifest, name, value)
    return write_manifest(directory, manifest)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    assert claim(tmp_path / "encoder") == "run"
    finish(tmp_path / "encoder", interface={"name": "clip-pocket", "dim": 4})
    return tmp_path / "encoder"


def test_first_run_then_up_to_date(done):
    assert claim(done) == "up_to_date"
    assert sorted(path.name for path in done.iterdir()) == ["config.yaml", "manifest.json", "out.npy"]


def test_manifest_describes_the_outputs(done):
    record = json.loads((done / "manifest.json").read_text())
    assert record["outputs"]["out.npy"]["shape"] == [2, 3]
    assert record["outputs"]["out.npy"]["sha256"] == sha256_file(done / "out.npy")
    assert "config.yaml" in record["outputs"]
    assert record["versions"]["python"]
    assert read_manifest(done).outputs == record["outputs"]


def test_another_config_is_refused_with_its_keys(done):
    with pytest.raises(ArtifactError, match=r"differs from this command in optim\.lr: .*RUN=.*--overwrite"):
        claim(done, {"optim": {"lr": 0.2}, "seed": 0})
    with pytest.raises(ArtifactError, match=r"the stage \('train-encoder' there, 'train-prior' here\)"):
        claim(done, stage="train-prior")
    assert claim(done) == "up_to_date"  # a refusal changes nothing


def test_overwrite_starts_from_nothing(done):
    assert claim(done, {"optim": {"lr": 0.2}}, overwrite=True) == "run"
    assert not (done / "manifest.json").exists()


def test_a_changed_input_is_refused_by_name(done, tmp_path):
    inputs = {"encoder": input_record(done)}
    prior = tmp_path / "prior"
    assert claim(prior, inputs=inputs, stage="train-prior") == "run"
    finish(prior, inputs=inputs, stage="train-prior")
    assert claim(prior, inputs=inputs, stage="train-prior") == "up_to_date"
    finish(done, metrics={"val/x": 1.0})
    with pytest.raises(ArtifactError, match="differs from this command in the input 'encoder'"):
        claim(prior, inputs={"encoder": input_record(done)}, stage="train-prior")


def test_an_unfinished_run_resumes_only_with_its_own_config(tmp_path):
    assert claim(tmp_path) == "run"
    assert claim(tmp_path) == "run"  # killed before the first checkpoint
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "part.npy").write_bytes(b"x")
    assert claim(tmp_path) == "run"
    assert (tmp_path / "checkpoints" / "part.npy").exists()  # the stage's own to reuse
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"x")
    assert claim(tmp_path) == "resume"
    with pytest.raises(ArtifactError, match=r"holds an unfinished run that differs .*optim\.lr"):
        claim(tmp_path, {"optim": {"lr": 0.2}, "seed": 0})
    with pytest.raises(ArtifactError, match=r"is unfinished \(it has no manifest.json\)"):
        read_manifest(tmp_path)
    finish(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert claim(tmp_path) == "up_to_date"


def test_other_ranks_never_touch_the_directory(done, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert claim(done, {"optim": {"lr": 9}}, overwrite=True) == "run"
    assert (done / "manifest.json").exists()


def test_missing_directory_names_the_fix(tmp_path):
    with pytest.raises(ArtifactError, match=r"none does not exist: make it first with make train-encoder\."):
        read_manifest(tmp_path / "none", fix="make train-encoder")
    with pytest.raises(ArtifactError, match="does not exist"):
        input_record(tmp_path / "none")


def test_tampering_is_found(done):
    content = bytearray((done / "out.npy").read_bytes())
    content[-1] ^= 1
    (done / "out.npy").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is not the file its manifest describes.*--overwrite"):
        read_manifest(done)
    assert read_manifest(done, verify=False).stage == "train-encoder"
    (done / "out.npy").write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=r"has \d+ bytes, but its manifest says \d+"):
        claim(done)
    (done / "out.npy").unlink()
    with pytest.raises(ArtifactError, match="listed in the manifest but missing"):
        claim(done)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema": 99}, "has schema 99, but this eegrecon reads schema 1"),
        ({"surprise": 1}, r"lacks or adds fields \(surprise\)"),
    ],
)
def test_unknown_schema_is_refused(done, change, expected):
    path = done / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=expected):
        read_manifest(done)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_broken_manifest_is_one_sentence(done, text):
    (done / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_manifest(done)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a/../../x", "..", "", ".", "..\\x", "C:\\x", "C:x", "a\0b"]
)
def test_an_output_outside_the_directory_is_refused(done, name, verify):
    """A manifest may come from the hub, and `save_pretrained` copies its outputs."""
    record = json.loads((done / "manifest.json").read_text())
    (done.parent.parent / "x").write_text("somebody's")
    record["outputs"][name] = {"sha256": sha256_file(done.parent.parent / "x"), "bytes": 10}
    (done / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError) as found:
        read_manifest(done, verify=verify)
    assert str(found.value) == (
        f"{done / 'manifest.json'} lists the output {name!r}, expected the name of a file inside {done}: do not use "
        "this directory unless you know who made it; make or fetch it again."
    )


def test_outputs_in_folders_are_read_and_lists_are_no_outputs(done):
    record = json.loads((done / "manifest.json").read_text())
    (done / "embeds").mkdir()
    (done / "embeds" / "..train").write_text("x")
    record["outputs"]["embeds/..train"] = {"sha256": sha256_file(done / "embeds" / "..train"), "bytes": 1}
    (done / "manifest.json").write_text(json.dumps(record))
    assert "embeds/..train" in read_manifest(done).outputs
    for outputs in (["out.npy"], {"out.npy": None}):
        (done / "manifest.json").write_text(json.dumps(record | {"outputs": outputs}))
        with pytest.raises(ArtifactError, match=r"must list its outputs as names with what is known of each"):
            read_manifest(done, verify=False)


def test_an_output_that_was_never_written(tmp_path):
    claim(tmp_path)
    manifest = new_manifest("train-encoder", command="x", config_hash="0", seed=0, outputs={"model.safetensors": {}})
    with pytest.raises(ArtifactError, match="which was never written"):
        write_manifest(tmp_path, manifest)
    assert not (tmp_path / "manifest.json").exists()


def test_require_interface_names_field_values_files_and_fix(done):
    manifest = read_manifest(done)
    require_interface(manifest, {"name": "clip-pocket", "dim": 4}, manifest_path=done, wanted_by="prior.yaml", fix="f")
    with pytest.raises(ArtifactError) as caught:
        require_interface(
            manifest,
            {"name": "clip-vit", "dim": 4, "normalised": False},
            manifest_path=done,
            wanted_by="prior.yaml",
            fix="make train-encoder",
        )
    text = str(caught.value)
    for part in ("name is 'clip-pocket' there and 'clip-vit' here", "normalised is 'nothing' there", "prior.yaml"):
        assert part in text
    assert str(done) in text
    assert text.endswith("run make train-encoder.")
    assert not re.search(r"\bdim is", text)


def test_atomic_write_keeps_the_old_file_on_error(tmp_path):
    path = tmp_path / "new" / "a.bin"
    with atomic_write(path) as file:
        file.write(b"old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["a.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~artifacts._umask()


def test_embeds_round_trip(tmp_path):
    path = tmp_path / "embeds" / "train.safetensors"
    eeg = np.random.default_rng(0).normal(size=(3, 4))
    extra = {"pred_image_embeds": np.ones((3, 2), np.float32)}
    save_embeds(path, eeg, [5, 6, 7], [1, 1, 1], [-1, -1, -1], extra)
    back = load_embeds(path)
    assert back["eeg_embeds"].dtype == np.float32
    np.testing.assert_array_equal(back["eeg_embeds"], eeg.astype(np.float32))
    np.testing.assert_array_equal(back["image_index"], np.array([5, 6, 7], np.int32))
    assert back["repetition"].dtype == np.int32
    assert back["pred_image_embeds"].shape == (3, 2)


def test_embeds_refuse_uneven_and_unreadable(tmp_path):
    with pytest.raises(ArtifactError, match="one row per trial"):
        save_embeds(tmp_path / "a.safetensors", np.zeros((3, 4)), [1], [1], [1])
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.safetensors").write_bytes(b"junk")
    for name in ("b", "c"):
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_embeds(tmp_path / f"{name}.safetensors")
