"""What can be wrong with recordings: each kind is one sentence and exit code 2, and leaves no store behind."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eegrecon.data import THINGS_EEG2_CHANNELS
from tests.builders_layouts import (
    NAMES,
    TIMES,
    Place,
    preprocessed,
    trials,
    write_meg_pkl,
    write_original,
    write_preprocessed,
    write_pt,
)

pytestmark = pytest.mark.usefixtures("clean_rank")
NAMES_63 = list(THINGS_EEG2_CHANNELS)
SWAPPED = [*NAMES_63[:60], "Oz", "O1", "O2"]


def values(**changes):
    """Write another training file of the layout `preprocessed`; None drops a key."""

    def damage(place):
        found = preprocessed(trials()["train"], **changes)
        found = {key: value for key, value in found.items() if value is not None}
        (place.files / "sub-01" / NAMES["train"]).write_bytes(pickle.dumps(found, protocol=4))

    return damage


def eeg(change):
    """Change the training trials in place."""

    def damage(place):
        data = trials()
        data["train"] = found if (found := change(data["train"])) is not None else data["train"]
        write_preprocessed(place.files / "sub-01", data)

    return damage


def put(at, value):
    return eeg(lambda data: data.__setitem__(at, value))


def cut(share, name=NAMES["train"]):
    def damage(place):
        path = place.files / "sub-01" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))] if share >= 0 else whole[:share])

    return damage


def content(text):
    return lambda place: (place.files / "sub-01" / NAMES["train"]).write_bytes(text)


def picture(action, pattern="training_images/00002_bat1/bat1_02s.jpg"):
    return lambda place: action(place.set_root / "images_set" / pattern)


def rename(name):
    return lambda path: path.rename(path.with_name(name))


class Runs:
    def __reduce__(self):
        return eval, ("print('ran')",)


PREPROCESSED = {
    "cut to nothing": (cut(0), "is empty"),
    "cut in the header": (cut(0.0001), "truncated|damaged"),
    "cut at one tenth": (cut(0.1), "truncated"),
    "cut in half": (cut(0.5), "truncated"),
    "cut near the end": (cut(0.999), "truncated"),
    "last byte missing": (cut(-1), "truncated"),
    "test file cut": (cut(0.5, NAMES["test"]), NAMES["test"]),
    "a web page": (content(b"<html>404 not found</html>"), "is a web page"),
    "a letter": (content(b"hello, this is a letter"), "opcode|damaged|no sense"),
    "a plain array": (content(b"\x93NUMPY" + bytes(100)), r"\.npy file|plain array"),
    "a program": (content(pickle.dumps({"preprocessed_eeg_data": Runs()}, protocol=4)), r"builtins\.eval"),
    "a list": (content(pickle.dumps([1, 2], protocol=4)), "a list of 2"),
    "float32 named int": (values(preprocessed_eeg_data=np.ones((6, 4, 63, 250), dtype=np.int32)), "int32"),
    "complex": (values(preprocessed_eeg_data=np.ones((6, 4, 63, 250), dtype=np.complex64)), "complex64"),
    "objects": (values(preprocessed_eeg_data=np.empty((6, 4, 63, 250), dtype=object)), "object"),
    "no trials axis": (eeg(lambda data: data[:, 0]), r"shape \(6, 63, 250\)"),
    "no trials": (eeg(lambda data: data[:, :0]), "none of them 0"),
    "axes swapped": (eeg(lambda data: data.swapaxes(2, 3)), "63 channels, but"),
    "rows missing": (eeg(lambda data: data[:5]), "5 train pictures"),
    "rows too many": (eeg(lambda data: np.concatenate([data, data])), "12 train pictures"),
    "fewer samples": (eeg(lambda data: data[..., :200]), "300 times for 200 samples"),
    "more samples": (eeg(lambda data: np.concatenate([data, data], axis=3)), "must be 500 or more numbers"),
    "NaN": (put((3, 2, 10, 100), np.nan), "NaN"),
    "infinite": (put((0, 0, 0, 0), np.inf), "infinite"),
    "beyond float16": (put((5, 3, 62, 249), 70000.0), "70000"),
    "a channel is constant": (put((slice(None), slice(None), 61), 0.25), "Oz"),
    "all zero": (eeg(lambda data: np.zeros_like(data)), "constant|same value|0"),
    "volts": (eeg(lambda data: data * 1e-6), "volt"),
    "no data": (values(preprocessed_eeg_data=None), "must hold a dict with preprocessed_eeg_data"),
    "no channel names": (values(ch_names=None), "must hold a dict with"),
    "channel names are numbers": (values(ch_names=list(range(63))), "list of names"),
    "62 names": (values(ch_names=NAMES_63[:62]), "62 channels, but"),
    "a channel twice": (values(ch_names=["Fp1", *NAMES_63[:62]]), "Fp1|twice"),
    "channels swapped": (values(ch_names=SWAPPED), "another order|order"),
    "a foreign channel": (values(ch_names=[*NAMES_63[:62], "Fz"]), "Fz"),
    "no times": (values(times=None), "must hold a dict with"),
    "times are names": (values(times=np.array(["a"] * 300)), "numbers in seconds"),
    "times go back": (values(times=TIMES[::-1].copy()), "rise in even steps"),
    "times have a gap": (values(times=np.where(np.arange(300) > 100, TIMES + 1, TIMES)), "even steps"),
    "times with NaN": (values(times=np.where(np.arange(300) > 298, np.nan, TIMES)), "even steps"),
    "another rate": (values(times=np.arange(300) / 200 - 0.2), "200 Hz, expected 250 Hz"),
    "times of another window": (values(times=np.arange(300) / 250), "would begin at"),
    "no training file": (lambda p: (p.files / "sub-01" / NAMES["train"]).unlink(), "does not exist"),
    "no test file": (lambda p: (p.files / "sub-01" / NAMES["test"]).unlink(), "does not exist"),
    "no subject": (lambda p: (p.files / "sub-01").rename(p.files / "sub-07"), "sub-07"),
    "no folder": (lambda p: shutil.rmtree(p.files), "does not exist"),
    "a picture is missing": (picture(Path.unlink), "00002_bat1 holds 1"),
    "a picture too many": (
        picture(lambda path: shutil.copy(path, path.with_name("bat1_03s.jpg"))), "00002_bat1 holds 3"
    ),
    "a picture is empty": (picture(lambda path: path.write_bytes(b"")), "bat1_02s.jpg.*cannot be read"),
    "a picture is cut": (picture(lambda path: path.write_bytes(path.read_bytes()[:300])), "cannot be read"),
    "a picture is a web page": (picture(lambda path: path.write_bytes(b"<html>")), "cannot be read"),
    "a concept is ill-named": (picture(rename("bat"), "training_images/00002_bat1"), "not named like"),
    "a concept is empty": (
        picture(lambda path: [file.unlink() for file in path.iterdir()], "training_images/00002_bat1"),
        "holds no picture",
    ),
    "no test pictures": (picture(shutil.rmtree, "test_images"), "test_images does not exist"),
    "no pictures": (lambda p: shutil.rmtree(p.set_root / "images_set"), "does not exist"),
}  # fmt: skip


def refused(place, capfd):
    """Run `prepare-data`; its one sentence, without a traceback and without a store."""
    capfd.readouterr()
    assert place.run() == 2
    said = capfd.readouterr().err
    sentences = [line for line in said.splitlines() if line.startswith("eegrecon: ")]
    assert len(sentences) == 1, said
    assert "Traceback" not in said
    assert not place.store.exists()
    return sentences[0]


def test_the_list_is_long_enough():
    assert len(PREPROCESSED) + len(OTHERS) >= 60


@pytest.mark.parametrize(("damage", "message"), PREPROCESSED.values(), ids=PREPROCESSED)
def test_preprocessed_files(tmp_path, capfd, damage, message):
    place = Place(tmp_path, "preprocessed")
    write_preprocessed(place.files / "sub-01", trials())
    damage(place)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(refused(place, capfd))


def pt(**changes):
    def write(place):
        write_pt(place.files / "sub-01", trials(), place.images, list(range(6)), **changes)

    return write


def whole_pt(place):
    pt()(place)
    return place.files / "sub-01" / "train.pt"


def original(place):
    write_original(place.files / "sub-01", trials(chans=17, samples=100))


def meg(**changes):
    def write(place):
        data = trials(chans=271, samples=201)
        data = {"train": data["train"][:, :1], "test": data["test"]}
        write_meg_pkl(place.files / "sub-01", data, 2)
        path = place.files / "sub-01" / "preprocessed_meg_training.pkl"
        found = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps({**found, **changes}, protocol=4))

    return write


def tensors_instead(place):
    torch.save({"eeg": torch.zeros(6, 4, 63, 250)}, whole_pt(place))


OTHERS = {
    "pt cut": ("pt", lambda p: whole_pt(p).write_bytes(whole_pt(p).read_bytes()[:-3000]), "truncated or damaged"),
    "pt with tensors": ("pt", tensors_instead, "torch"),
    "pt without pictures": ("pt", pt(img=None), "img"),
    "pt with other pictures": ("pt", pt(img=np.array([["train_images/x/y.jpg"] * 4] * 6)), "y.jpg"),
    "pt rows of two pictures": (
        "pt", pt(img=np.array([["train_images/00001_aardvark/aardvark_01b.jpg"] * 4] * 6)), "aardvark"
    ),
    "pt sessions of another shape": ("pt", pt(session=np.zeros((5, 4))), "session"),
    "preprocessed named original": (
        "original", lambda p: write_preprocessed(p.files / "sub-01", trials()), "250 Hz, expected 100 Hz"
    ),
    "original named preprocessed": ("preprocessed", original, "100 Hz, expected 250 Hz"),
    "MEG in another shape": ("meg_pkl", meg(meg_data=np.zeros((6, 1, 271, 201))), r"shape \(6, 1, 271, 201\)"),
    "MEG in Fortran order": ("meg_pkl", meg(meg_data=np.zeros((3, 2, 1, 271, 201), order="F")), "Fortran order"),
    "MEG with too few names": ("meg_pkl", meg(ch_names=["MLC11"]), "1 channels, but"),
    "MEG at another rate": ("meg_pkl", meg(times=np.arange(201) / 100), "100 Hz, expected 200 Hz"),
    "MEG epochs missing": ("meg_fif", lambda p: p.files.mkdir(), "epo.fif|does not exist|csv"),
    "raw without sessions": ("raw", lambda p: (p.files / "sub-01").mkdir(parents=True), "lacks ses-01"),
}  # fmt: skip


@pytest.mark.parametrize(("layout", "damage", "message"), OTHERS.values(), ids=OTHERS)
def test_other_layouts(tmp_path, capfd, layout, damage, message):
    place = Place(tmp_path, layout, "things_meg" if layout.startswith("meg") else "things_eeg2")
    damage(place)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(refused(place, capfd))


def test_one_picture_gone_and_another_too_many_is_noticed(tmp_path, capfd):
    """The total fits, but every row in between would show the wrong picture."""
    place = Place(tmp_path, "preprocessed")
    write_preprocessed(place.files / "sub-01", trials())
    home = place.set_root / "images_set/training_images"
    (home / "00001_aardvark/aardvark_02s.jpg").rename(home / "00003_bat2/bat2_03s.jpg")
    assert "and most hold" in refused(place, capfd)
