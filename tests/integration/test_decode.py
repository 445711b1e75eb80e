"""`eegrecon decode`: a file of trials in, a folder of pictures out, whole or not at all."""

import json
import os
import shutil

import mne
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from eegrecon import EEGToImagePipeline
from eegrecon.cli import main
from eegrecon.models.generators.sdxl import SDXLGenerator
from tests.builders_runs import build_chain
from tests.integration.test_pipeline import as_epochs

pytestmark = pytest.mark.usefixtures("clean_rank")
N = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_chain(home)
    eeg = np.load(home / "data/pocket/trials/sub-01/test_eeg.npy").astype(np.float32).mean(1)[:N]
    np.save(home / "eeg.npy", eeg)
    as_epochs(eeg).save(home / "eeg-epo.fif", verbose=False)
    return home


def decode(place, out, file="eeg.npy", *words):
    return main(["decode", str(place / file), "--run", str(place / "run"), "--out", str(out), "--subject", "1", *words])


def sentence(capsys, code):
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def pixels(path):
    return np.asarray(Image.open(path), dtype=int)


def test_it_writes_what_the_pipeline_makes(place, tmp_path, capsys):
    assert decode(place, tmp_path / "out", "eeg.npy", "--images", "2", "--seed", "3", "--batch-size", "3") == 0
    assert capsys.readouterr().err.strip().endswith(f"decode: wrote {N} trials to {tmp_path / 'out'}")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    pictures = [f"{i:04d}{draw}.png" for i in range(N) for draw in ("", "__draw-1")]
    assert names == sorted([*pictures, "decode.json", "embeds.safetensors", "grid.png"])
    pipe = EEGToImagePipeline.from_pretrained(place / "run")
    wanted = pipe(np.load(place / "eeg.npy"), subject=1, generator=3, num_images_per_trial=2)
    for i in range(N):
        for draw, name in enumerate((f"{i:04d}.png", f"{i:04d}__draw-1.png")):
            assert np.abs(pixels(tmp_path / "out" / name) - np.asarray(wanted.images[i][draw], dtype=int)).max() <= 1
    embeds = load_file(tmp_path / "out" / "embeds.safetensors")
    np.testing.assert_allclose(embeds["pred_image_embeds"], wanted.image_embeds, atol=1e-4)
    assert embeds["eeg_embeds"].shape == (N, 256)
    assert embeds["subject"].tolist() == [1] * N
    record = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert (record["seed"], record["trials"], record["run"]["manifests"]) == (3, N, pipe.plan.stages)
    assert pixels(tmp_path / "out" / "grid.png").shape[1] > N * 128


def test_epochs_and_overwriting(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert decode(place, out, "eeg-epo.fif") == 0
    assert "left out: EOG" in capsys.readouterr().err
    first = pixels(out / "0003.png")
    assert "is there already" in sentence(capsys, decode(place, out))
    assert decode(place, out, "eeg.npy", "--overwrite", "--seed", "1") == 0
    assert np.abs(pixels(out / "0003.png") - first).max() > 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    capsys.readouterr()
    assert "has no decode.json) and is not overwritten" in sentence(
        capsys, decode(place, tmp_path / "mine", "eeg.npy", "--overwrite")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_overwriting_never_takes_what_is_read_or_what_was_there(place, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert decode(place, out) == 0
    shutil.copyfile(place / "eeg.npy", out / "mine.npy")
    capsys.readouterr()
    assert "FILE " in (said := sentence(capsys, decode(place, out, out / "mine.npy", "--overwrite")))
    assert "mine.npy lies in --out" in said
    assert (out / "mine.npy").is_file()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    real = os.replace

    def interrupted(source, target):
        if str(source).endswith(".tmp"):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert decode(place, out, "eeg.npy", "--overwrite", "--seed", "1") == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_every_slip_is_one_sentence_and_leaves_nothing(place, tmp_path, capsys, monkeypatch):
    info = mne.create_info(["Oz"], 250.0, "eeg")
    raw = mne.io.RawArray(np.zeros((1, 500)), info, verbose=False)
    raw.save(tmp_path / "r_raw.fif", verbose=False)
    out = tmp_path / "out"
    for words, says in (
        ((tmp_path / "r_raw.fif",), "cannot be read as MNE epochs"),
        ((tmp_path / "no-epo.fif",), "does not exist"),
        ((tmp_path / "no.npy",), "does not exist"),
        ((tmp_path / "x.set",), "neither MNE epochs (.fif) nor a plain array (.npy)"),
        (("eeg.npy", "--images", "0"), "--images is 0, expected at least 1"),
        (("eeg.npy", "--batch-size", "0"), "--batch-size is 0"),
        (("eeg.npy", "--subject", "-1"), "--subject is -1"),
        (("eeg.npy", "--device", "cuda:77"), "--device cuda:77 cannot be used"),
        (("eeg.npy", "--run", str(tmp_path)), "encoder does not exist: make it first with `eegrecon train-encoder`"),
    ):
        assert says in sentence(capsys, decode(place, out, *words)), words
    full = torch.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(SDXLGenerator, "forward", lambda *_, **__: (_ for _ in ()).throw(full))
    assert decode(place, out) == 2
    assert "try batch_size=2 (--batch-size 2)" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["r_raw.fif"]
