"""`prepare-data` on recordings, through the command line: every layout, kills, damage, and what changes in between."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eegrecon.cli import main
from eegrecon.data import ImageSet, TrialStore
from tests.builders_layouts import (
    NAMES,
    Place,
    trials,
    write_meg_pkl,
    write_original,
    write_preprocessed,
    write_pt,
)

pytestmark = pytest.mark.usefixtures("clean_rank")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path, "preprocessed")
    write_preprocessed(made.files / "sub-01", trials())
    return made


@pytest.fixture
def refused(capfd):
    """Run a command that is refused; return its one sentence."""

    def refuse(place, *overrides):
        capfd.readouterr()
        assert place.run(*overrides) == 2
        said = capfd.readouterr().err.strip().splitlines()
        sentences = [line for line in said if line.startswith("eegrecon: ")]
        assert len(sentences) == 1, said
        assert "Traceback" not in "".join(said)
        return sentences[0]

    return refuse


def stored(eeg):
    return eeg.astype(np.float32).astype(np.float16)


@pytest.mark.parametrize("layout", ["preprocessed", "original", "pt", "meg_pkl"])
def test_every_layout_becomes_a_store(tmp_path, layout, capfd):
    place = Place(tmp_path, layout, "things_meg" if layout == "meg_pkl" else "things_eeg2")
    home = place.files / "sub-01"
    small = {"original": {"chans": 17, "samples": 100}, "meg_pkl": {"chans": 271, "samples": 201}}
    data = trials(**small.get(layout, {}))
    expected = {side: stored(eeg) for side, eeg in data.items()}
    if layout == "preprocessed":
        write_preprocessed(home, data)
    elif layout == "original":
        write_original(home, data)
    elif layout == "pt":
        write_pt(home, data, place.images, [5, 4, 3, 2, 1, 0])
        expected = {side: eeg.astype(np.float16) for side, eeg in data.items()}
    else:
        data = {"train": data["train"][:, :1], "test": data["test"]}
        expected = {side: stored(eeg) for side, eeg in data.items()}
        write_meg_pkl(home, data, 2)
    assert place.run() == 0
    for side, eeg in expected.items():
        assert np.array_equal(place.eeg(side), eeg)
    capfd.readouterr()
    assert place.run() == 0
    assert "up to date" in capfd.readouterr().err


def test_finished_stores_outlive_their_source_and_notice_another(place, refused, capfd):
    assert place.run() == 0
    elsewhere = place.files.rename(place.files.with_name("moved"))
    capfd.readouterr()
    assert place.run() == 0  # the 10 GB of a subject may be deleted after the conversion
    assert "up to date" in capfd.readouterr().err
    assert place.run(f"source.args.path={elsewhere}") == 0  # where the files lie is no part of the result
    assert "sub-02" in refused(place, "data.subjects=[1,2]")
    write_preprocessed(place.files / "sub-01", {side: eeg + 1 for side, eeg in trials().items()})
    said = refused(place)
    assert "preprocessed_eeg_training.npy" in said
    assert "--overwrite" in said
    assert np.array_equal(place.eeg(), stored(trials()["train"]))
    assert place.run("--overwrite") == 0
    assert np.array_equal(place.eeg(), stored(trials()["train"] + 1))


@pytest.mark.parametrize(
    "damage",
    ["truncated", "nan", "overflow", "constant", "hostile", "missing_test", "picture_gone", "picture_broken", "no_set"],
)
def test_damage_is_one_sentence_and_leaves_no_partial_store(place, refused, damage):
    data, home = trials(), place.files / "sub-01"
    path = home / NAMES["train"]
    words = {"truncated": "preprocessed_eeg_training.npy", "hostile": "posix.system", "missing_test": NAMES["test"]}
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "hostile":
        proof = place.files / "executed"
        path.write_bytes(pickle.dumps(Hostile(proof), protocol=4))
    elif damage == "missing_test":
        (home / NAMES["test"]).unlink()
    elif damage in ("nan", "overflow", "constant"):
        words[damage] = {"nan": "NaN", "overflow": "100000", "constant": "Fp1"}[damage]
        if damage == "constant":
            data["test"][:, :, 0] = 1
        else:
            data["test"][1, 2, 3, 4] = np.nan if damage == "nan" else 1e5
        write_preprocessed(home, data)
    elif damage == "picture_gone":
        words[damage] = "holds 5"
        next(place.set_root.glob("images_set/training_images/*/bat1_02s.jpg")).unlink()
    elif damage == "picture_broken":
        words[damage] = "bat1_02s.jpg cannot be read"
        broken = next(place.set_root.glob("images_set/training_images/*/bat1_02s.jpg"))
        broken.write_bytes(broken.read_bytes()[:-200])
    else:
        words[damage] = "put (or link) the THINGS pictures there"
        (place.set_root / "images_set/test_images").rename(place.set_root / "elsewhere")
    for _ in range(2):  # it is refused again, not accepted the second time
        assert words[damage] in refused(place)
        assert not (place.set_root / "trials/sub-01").exists()
    assert not (place.files / "executed").exists()


class Hostile:
    """Unpickling it would run a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_all_subjects_are_looked_at_before_the_first_is_written(place, refused):
    assert "sub-02" in refused(place, "data.subjects=[1,2]")
    assert not place.store.exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("source.name=preprocesed", "did you mean 'preprocessed'?"),
        ("source.args.rate=3", "'rate' is not an argument"),
        ("source.args.subject=3", "'subject' is a fact of the data"),
        ("source.name=original", "'path' has no value"),  # another name drops the args
        ("data.subjects=[0]", "numbers from 1"),
    ],
)
def test_config(place, refused, override, words):
    assert words in refused(place, override)
    assert not place.store.exists()


SLOWLY = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
from eegrecon.data import conversion, trials
conversion.BLOCK_BYTES = 1
append = trials.TrialStoreWriter.append
def slow(self, *args):
    append(self, *args)
    print("block", file=sys.stdout, flush=True)
    time.sleep(0.05)
trials.TrialStoreWriter.append = slow
from eegrecon.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("blocks", "sign"), [(1, signal.SIGKILL), (5, signal.SIGINT), (7, signal.SIGKILL)])
def test_a_killed_conversion_equals_an_uninterrupted_one(place, blocks, sign, capfd):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *place.words()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    for _ in range(blocks):
        assert process.stdout.readline() == b"block\n"
    process.send_signal(sign)
    process.communicate(timeout=60)
    assert process.returncode == (130 if sign == signal.SIGINT else -sign)
    assert not (place.store / "header.json").exists()
    kept = next(place.store.glob(".train_eeg.npy.partial")).stat().st_size
    assert kept > min(blocks, 6) * 4 * 63 * 250 * 2
    started = time.time()
    assert place.run() == 0
    for side in ("train", "test"):
        assert np.array_equal(place.eeg(side), stored(trials()[side]))
    assert not [path for path in place.store.iterdir() if path.name.startswith(".")]
    assert (place.store / "manifest.json").stat().st_mtime >= started - 1


def test_a_full_disk_is_told_before_anything_is_written(place, refused, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    assert "needs 0.1 GB" in refused(place)
    assert not place.store.exists()


def test_a_source_that_changes_meanwhile_is_refused(place, refused, monkeypatch):
    from eegrecon.stages import prepare_recordings

    convert = prepare_recordings.convert

    def changing(source, *args, **kwargs):
        convert(source, *args, **kwargs)
        with (place.files / "sub-01" / NAMES["train"]).open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(prepare_recordings, "convert", changing)
    assert "changed while it was read" in refused(place)
    assert not place.store.exists()


@pytest.fixture
def laborious(place, monkeypatch):
    """Sources that leave an intermediate file in their work folder before the first read; returns what they did."""
    from eegrecon.data.sources import RecordingSource
    from eegrecon.stages import prepare_recordings

    done, file, resolve = [], place.store / ".work" / "epochs.npy", prepare_recordings.resolve

    def prepare(self, progress):
        done.append("kept" if file.is_file() else "made")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"work")
        progress(1, 1)

    monkeypatch.setattr(RecordingSource, "prepare", prepare)
    monkeypatch.setattr(prepare_recordings, "resolve", lambda *a, **k: replace(resolve(*a, **k), work_bytes=1))
    return done


def test_intermediate_files_survive_an_interrupt_only_for_the_same_recording(place, laborious, monkeypatch):
    from eegrecon.stages import prepare_recordings

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_recordings, "convert", killed)
        assert place.run() == 130
        assert place.run() == 130
        write_preprocessed(place.files / "sub-01", {side: eeg + 1 for side, eeg in trials().items()})
        assert place.run() == 130
    assert place.run() == 0
    assert laborious == ["made", "kept", "made", "kept"]
    assert not (place.store / ".work").exists()
    assert np.array_equal(place.eeg(), stored(trials()["train"] + 1))


def test_intermediate_files_do_not_outlive_damage(place, laborious, refused):
    data = trials()
    data["test"][0, 0, 0, 0] = np.nan
    write_preprocessed(place.files / "sub-01", data)
    assert "NaN" in refused(place)
    assert laborious == ["made"]
    assert not place.store.exists()


@pytest.mark.slow
def test_look_alikes_of_one_brain_give_one_store(tmp_path):
    """The same simulated subject through two layouts: what must be equal is."""
    made = {}
    layouts = {"preprocessed": "Preprocessed_data_250Hz", "pt": "Preprocessed_data_250Hz_whiten"}
    for layout, folder in {**layouts, "meg_pkl": "preprocessed_MEG", "meg_fif": ""}.items():
        set_name = "things_meg" if layout.startswith("meg") else "things_eeg2"
        home = tmp_path / layout / set_name
        counts = ["--concepts", "3", "--test-concepts", "2", "--size", "16", "--signal", "noise"]
        assert main(["look-alike", "--layout", layout, "--out", str(home), *counts]) == 0
        config = tmp_path / layout / "prepare-data.yaml"
        config.write_text(
            f"data: {{set: {set_name}, root: {home.parent}, subjects: [1]}}\n"
            f"source: {{name: {layout}, args: {{path: {home / folder}}}}}\n"
        )
        assert main(["prepare-data", "--config", str(config)]) == 0
        store = TrialStore(home / "trials/sub-01", ImageSet.from_root(home))
        made[layout] = {side: store.open(side, verify=True) for side in ("train", "test")}
    assert np.array_equal(made["meg_pkl"]["train"].eeg, made["meg_fif"]["train"].eeg)
    for side in ("train", "test"):
        np.testing.assert_allclose(made["pt"][side].eeg, made["preprocessed"][side].eeg, atol=4e-3)
        assert np.array_equal(made["pt"][side].image_index, made["preprocessed"][side].image_index)
    # Repetitions of the epochs file come in the order of the recording.
    pkl, fif = (np.sort(made[name]["test"].eeg[..., 5, 7], axis=1) for name in ("meg_pkl", "meg_fif"))
    assert np.array_equal(pkl, fif)
    assert made["meg_fif"]["test"].session.min() >= 1
