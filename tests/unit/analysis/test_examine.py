"""`inspect` on every layout there is, whole and damaged."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from eegrecon.analysis.examine import examine
from eegrecon.cli import main
from eegrecon.data.channels import THINGS_EEG2_CHANNELS
from eegrecon.data.things_eeg2 import RECORDED
from eegrecon.errors import DataError
from eegrecon.pocket.lookalike import LookAlikeSet, write_look_alike
from tests.builders import build_tiny_set

SILENT = lambda done, total: None  # noqa: E731
LAYOUTS = {
    "preprocessed": ("preprocessed EEG (THINGS-EEG2 layout)", 2),
    "original": ("preprocessed EEG (THINGS-EEG2 layout)", 2),
    "pt": ("preprocessed EEG (UBP layout)", 2),
    "raw": ("raw EEG session (THINGS-EEG2 layout)", 8),
    "meg_pkl": ("preprocessed MEG (THINGS-MEG layout of EEG_Image_decode)", 2),
    "meg_fif": ("MNE epochs", 1),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    pictures = LookAlikeSet(3, 2, 2, request.param.startswith("meg"))
    written = write_look_alike(request.param, out, pictures, repetitions={"train": 1, "test": 12} if "meg" in
                               request.param else {"train": 4, "test": 4})  # fmt: skip
    return request.param, [path for path in written if path.suffix in (".npy", ".pt", ".pkl", ".fif")]


def test_every_published_layout_is_known_and_whole(layout):
    name, files = layout
    kind, count = LAYOUTS[name]
    assert len(files) == count
    for file in files:
        found = examine(file, SILENT)
        assert found.problems == []
        assert found.kind == kind
        assert found.scan.n_trials > 0
        assert found.facts["channels"].startswith({"original": "17", "raw": "64", "meg_": "271"}.get(name[:8], "") or
                                                   {"meg": "271"}.get(name[:3], "63"))  # fmt: skip


def test_a_folder_lists_its_files(layout):
    _, files = layout
    found = examine(files[0].parent, SILENT)
    assert found.problems == []
    assert files[0].name in found.facts


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_one_sentence(layout, tmp_path, share):
    _, files = layout
    whole = files[0].read_bytes()
    path = tmp_path / files[0].name
    path.write_bytes(whole[: int(share * len(whole))])
    if share == 0.0 and path.suffix == ".pt":  # no zip, no pickle: nothing to recognise
        with pytest.raises(DataError, match="nothing that eegrecon knows"):
            examine(path, SILENT)
        return
    found = examine(path, SILENT)
    assert len(found.problems) == 1
    assert str(path) in found.problems[0]


def preprocessed(**changes):
    rng = np.random.default_rng(0)
    value = {
        "preprocessed_eeg_data": rng.normal(size=(4, 2, 63, 250)),
        "ch_names": list(THINGS_EEG2_CHANNELS),
        "times": np.linspace(-0.2, 0.996, 300),
    }
    return {key: item for key, item in {**value, **changes}.items() if item is not None}


def with_nan():
    data = preprocessed()["preprocessed_eeg_data"]
    data[1, 0, 3, 5] = np.nan
    return data


def with_flat_channel():
    data = preprocessed()["preprocessed_eeg_data"]
    data[:, :, 62] = 1.0
    return data


swapped = list(THINGS_EEG2_CHANNELS)
swapped[60], swapped[61] = swapped[61], swapped[60]
DAMAGE = {
    "no channel names": ({"ch_names": None}, "must hold a dict with preprocessed_eeg_data, ch_names, times"),
    "too few names": ({"ch_names": list(THINGS_EEG2_CHANNELS[:60])}, "names 60 channels, but"),
    "a channel twice": ({"ch_names": ["Fp1", *THINGS_EEG2_CHANNELS[:62]]}, "'Fp1' is named twice"),
    "another order": ({"ch_names": swapped}, r"another order \(position 60 is 'Oz', expected 'O1'\)"),
    "too few times": ({"times": np.linspace(0, 1, 100)}, "times in .* must be 250 or more numbers"),
    "times backwards": ({"times": np.linspace(1, 0, 250)}, "must rise in even steps"),
    "NaN": ({"preprocessed_eeg_data": with_nan()}, "1 of 8 trials hold NaN"),
    "flat channel": ({"preprocessed_eeg_data": with_flat_channel()}, "channels O2 never change"),
    "unknown keys": ({"preprocessed_eeg_data": None, "eeg_data": 1}, "does not know this file"),
    "whole numbers": ({"preprocessed_eeg_data": np.ones((4, 2, 63, 250), np.int16)}, "is int16, expected float16"),
    "no rows": ({"preprocessed_eeg_data": np.ones((0, 2, 63, 250))}, "none of them 0"),
    "another rate": ({"times": np.arange(250) / 200}, "was sampled at 200 Hz, expected 250 Hz"),
    "17 in no known order": (
        {
            "preprocessed_eeg_data": np.random.default_rng(0).normal(size=(4, 2, 17, 100)),
            "ch_names": list(RECORDED[::-1]),
            "times": np.arange(100) / 100 - 0.2,
        },
        r"another order.*or in the published files' own \(Pz, P3",
    ),
    "no array": ({"preprocessed_eeg_data": [1, 2]}, "has the shape list of 2"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_wrong_with_a_recording_is_said(tmp_path, changes, message):
    path = tmp_path / "preprocessed_eeg_training.npy"
    path.write_bytes(pickle.dumps(preprocessed(**changes), protocol=4))
    found = examine(path, SILENT)
    assert len(found.problems) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.problems[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("img", np.full((3, 2), "x"), r"img in .* must have one entry for each trial, \(4, 2\)"),
        ("session", np.full((4, 2), -1), "session in .* must hold whole numbers from 0"),
    ],
)
def test_what_is_wrong_with_a_named_recording_is_said(tmp_path, key, value, message):
    values = {"eeg": np.ones((4, 2, 63, 250), np.float16), "ch_names": list(THINGS_EEG2_CHANNELS)}
    values |= {"times": np.arange(250) / 250, "img": np.full((4, 2), "x"), "session": np.zeros((4, 2), int), key: value}
    torch.save(values, tmp_path / "train.pt", pickle_protocol=5)
    found = examine(tmp_path / "train.pt", SILENT)
    assert len(found.problems) == 1
    assert re.search(message, found.problems[0])


def test_a_raw_session_that_lacks_a_channel_is_refused_as_prepare_data_would(tmp_path):
    names = [*THINGS_EEG2_CHANNELS[:-1], "stim"]
    signal = np.random.default_rng(0).normal(size=(63, 4000)) * 1e-5
    signal[-1] = 0
    signal[-1, 500:3500:300] = 1
    raw = {"raw_eeg_data": signal, "ch_names": names, "ch_types": ["eeg"] * 62 + ["stim"], "sfreq": 1000}
    np.save(tmp_path / "raw_eeg_training.npy", np.array(raw, dtype=object), allow_pickle=True)
    found = examine(tmp_path / "raw_eeg_training.npy", SILENT)
    assert len(found.problems) == 1
    assert "the channels O2" in found.problems[0]


def test_two_files_of_a_subject_that_do_not_belong_together(tmp_path):
    folder = tmp_path / "sub-01"
    folder.mkdir()
    (folder / "preprocessed_eeg_training.npy").write_bytes(pickle.dumps(preprocessed(), protocol=4))
    late = preprocessed(times=np.arange(250) / 250 + 0.02)
    (folder / "preprocessed_eeg_test.npy").write_bytes(pickle.dumps(late, protocol=4))
    found = examine(tmp_path, SILENT)
    assert len(found.problems) == 1
    assert "differ in their first time" in found.problems[0]


def test_a_set_folder_is_looked_at_as_a_whole(tmp_path):
    root = build_tiny_set(tmp_path, subjects=(1, 2))
    found = examine(root, SILENT)
    assert found.problems == []
    assert found.scan is not None
    assert found.facts["trials/sub-02"].startswith("trial store; train: 36 pictures x 2 repetitions")
    assert found.facts["targets/clip-pocket"].startswith("target store; train: 36 pictures")
    assert found.facts["images_set"].startswith("pictures")
    (root / "Preprocessed" / "sub-01").mkdir(parents=True)
    bad = pickle.dumps(preprocessed(ch_names=swapped), protocol=4)
    (root / "Preprocessed" / "sub-01" / "preprocessed_eeg_training.npy").write_bytes(bad)
    eeg = root / "trials" / "sub-02" / "train_eeg.npy"
    whole = bytearray(eeg.read_bytes())
    whole[-1] ^= 255
    eeg.write_bytes(bytes(whole))
    found = examine(root, SILENT)
    assert found.facts["trials/sub-02"].startswith("DAMAGED")
    assert found.facts["Preprocessed/sub-01/preprocessed_eeg_training.npy"].startswith("DAMAGED")
    assert len(found.problems) == 2


def test_tensors_features_and_arrays(tmp_path):
    bad = np.array([1.0, np.nan], dtype=np.float32)
    save_file({"a": bad}, tmp_path / "x.safetensors")
    torch.save({"img_features": torch.zeros(4, 8), "text_features": torch.ones(2, 8)}, tmp_path / "f.pt")
    np.save(tmp_path / "y.npy", bad)
    (tmp_path / "z.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    assert "'a' in" in examine(tmp_path / "x.safetensors", SILENT).problems[0]
    features = examine(tmp_path / "f.pt", SILENT)
    assert features.kind == "CLIP feature file (EEG_Image_decode layout)"
    assert features.facts["img_features"] == "(4, 8), float32"
    assert "holds 1 NaN" in examine(tmp_path / "y.npy", SILENT).problems[0]
    assert "no readable safetensors" in examine(tmp_path / "z.safetensors", SILENT).problems[0]


def picture_folder(home: Path):
    for partition, concepts in (("training_images", ("00001_cat", "00002_dog")), ("test_images", ("00001_owl",))):
        for concept in concepts:
            (home / partition / concept).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(home / partition / concept / f"{concept[6:]}_01b.png")
    return home


def test_picture_folders(tmp_path):
    home = picture_folder(tmp_path / "images_set")
    assert examine(home, SILENT).problems == []
    (home / "training_images" / "00002_dog" / "dog_01b.png").write_bytes(b"nothing")
    (home / "training_images" / "00002_dog" / "readme.txt").write_text("x")
    (home / "training_images" / "owl").mkdir()
    (home / "test_images" / "00001_owl").rename(home / "test_images" / "00001_cat")
    text = "\n".join(examine(home, SILENT).problems)
    for part in ("cannot be read", "is no picture", "not named like", "the same number", "would not be zero-shot"):
        assert part in text


def test_nothing_there_and_nothing_known(tmp_path):
    with pytest.raises(DataError, match="There is nothing at"):
        examine(tmp_path / "absent", SILENT)
    (tmp_path / "a.txt").write_text("hello")
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(DataError, match="is nothing that eegrecon knows"):
            examine(path, SILENT)


def test_the_verb_prints_draws_and_exits_with_two_on_damage(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "p.npy"
    path.write_bytes(pickle.dumps(preprocessed(), protocol=4))
    assert main(["inspect", str(path)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    with Image.open("inspect.png") as picture:
        assert picture.size == (1100, 660)
    path.write_bytes(pickle.dumps(preprocessed(times=np.zeros(300)), protocol=4))
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert "1 problem(s)" in printed.err
    assert "must rise in even steps" in printed.out
    assert main(["inspect", str(tmp_path / "absent")]) == 2


def test_own_stores_and_runs(tmp_path):
    (tmp_path / "trials" / "sub-01").mkdir(parents=True)
    (tmp_path / "trials" / "sub-01" / "header.json").write_text(json.dumps({"schema": 1}))
    found = examine(tmp_path / "trials" / "sub-01", SILENT)
    assert found.kind == "trial store"
    assert "is missing" in found.problems[0]
    (tmp_path / "run" / "encoder").mkdir(parents=True)
    assert examine(tmp_path / "run", SILENT).facts == {"encoder": "unfinished; the same command continues it"}
