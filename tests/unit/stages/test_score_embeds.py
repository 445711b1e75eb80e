import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from eegrecon.analysis.ranks import load_ranks
from eegrecon.cli import main

pytestmark = pytest.mark.usefixtures("clean_rank")
N, DIM = 30, 8


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An image gallery, EEG embeddings that resemble it, and the names of 10 concepts, three pictures each."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(N, DIM)).astype(np.float32)
    np.save("image.npy", image)
    np.save("eeg.npy", (image + rng.normal(size=(N, DIM))).astype(np.float64))
    np.save("text.npy", np.repeat(rng.normal(size=(10, DIM)), 3, axis=0).astype(np.float16))
    return tmp_path


def score(*words):
    return main(["evaluate", "--eeg-embeds", "eeg.npy", "--image-embeds", "image.npy", *words])


def metrics(folder="out"):
    return json.loads(Path(folder, "metrics.json").read_text())["metrics"]


def test_scores_equal_sorting(files, capsys):
    assert score("--text-embeds", "text.npy", "--out", "out") == 0
    image, eeg, text = np.load("image.npy"), np.load("eeg.npy"), np.load("text.npy").astype(float)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    similarity = unit(eeg) @ unit(image).T
    place = (similarity > similarity.diagonal()[:, None]).sum(1)
    found = metrics()
    assert found[f"test/retrieval_top1_{N}way"]["value"] == pytest.approx((place == 0).mean())
    assert found[f"test/retrieval_top5_{N}way"]["value"] == pytest.approx((place < 5).mean())
    assert found[f"test/retrieval_mrr_{N}way"]["value"] == pytest.approx((1 / (place + 1)).mean())
    assert found["test/retrieval_top1_2way"]["value"] == pytest.approx(1 - place.mean() / (N - 1))
    assert found[f"test/retrieval_median_rank_{N}way"]["value"] == np.median(place + 1)
    names = unit(text[::3])
    own = np.arange(N) // 3
    classes = unit(eeg) @ names.T
    wrong = (classes > classes[np.arange(N), own][:, None]).sum(1)
    assert found["test/classification_top1_10way"]["value"] == pytest.approx((wrong == 0).mean())
    assert found["test/classification_top1_10way"]["chance"] == 0.1
    captured = capsys.readouterr()
    assert f"retrieval_top1_{N}way: {(place == 0).mean():.3f} [" in captured.out
    assert "30 queries of 30 pictures" in captured.err
    assert load_ranks(files / "out" / "ranks.safetensors").better.tolist() == place.tolist()


def test_perfect_embeddings_score_one_whatever_their_length(files):
    np.save("eeg.npy", np.load("image.npy") * np.linspace(0.1, 9, N)[:, None])
    assert score("--out", "out") == 0
    assert metrics()[f"test/retrieval_top1_{N}way"]["value"] == 1
    assert metrics()[f"test/retrieval_mean_rank_{N}way"]["value"] == 1


def test_every_kind_of_file_says_the_same(files, capsys):
    image, eeg = np.load("image.npy"), np.load("eeg.npy").astype(np.float32)
    save_file({"eeg_embeds": eeg, "other": eeg[:, :2].copy(), "image_index": np.arange(N)}, "eeg.safetensors")
    torch.save({"img_features": torch.from_numpy(image).bfloat16().float(), "text_features": torch.ones(N, 3)}, "i.pt")
    torch.save(torch.from_numpy(image), "bare.pt")
    assert score("--out", "a") == 0
    assert main(["evaluate", "--eeg-embeds=eeg.safetensors", "--image-embeds", "bare.pt", "--out", "b"]) == 0
    assert metrics("a") == metrics("b")
    assert main(["evaluate", "--eeg-embeds", "eeg.safetensors", "--image-embeds", "i.pt", "--out", "c"]) == 0
    assert metrics("c")[f"test/retrieval_mean_rank_{N}way"]["value"] == pytest.approx(
        metrics("a")[f"test/retrieval_mean_rank_{N}way"]["value"], abs=0.5
    )
    assert "image: i.pt (img_features), (30, 8)" in capsys.readouterr().err


def test_several_rows_a_picture_with_an_index(files):
    eeg = np.load("eeg.npy")
    rows = np.tile(np.arange(N), 2)
    np.save("twice.npy", eeg[rows])
    np.save("index.npy", rows)
    words = ["evaluate", "--eeg-embeds", "twice.npy", "--image-embeds", "image.npy", "--image-index", "index.npy"]
    assert main([*words, "--out", "twice"]) == 0
    assert score("--out", "once") == 0
    # thirty pictures are no more for being asked twice
    assert metrics("twice") == metrics("once")


def test_the_official_draw(files):
    assert score("--draws", "1", "--out", "one") == 0
    assert score("--draws", "1", "--out", "again") == 0
    assert score("--draws", "1", "--seed", "3", "--out", "other") == 0
    assert metrics("one") == metrics("again") != metrics("other")
    name = "test/retrieval_top1_10way"
    assert metrics("one")[f"{name}_drawn"]["value"] * N == pytest.approx(
        round(metrics("one")[f"{name}_drawn"]["value"] * N)
    )
    assert score("--draws", "2000", "--out", "many") == 0
    assert metrics("many")[f"{name}_drawn"]["value"] == pytest.approx(metrics("many")[name]["value"], abs=0.01)


def test_compare_reads_it(files, capsys):
    assert score("--out", "mine") == 0
    np.save("eeg.npy", np.load("image.npy"))
    assert score("--out", "perfect") == 0
    assert main(["compare", "mine", "perfect", "--out", "table"]) == 0
    assert "not stated test · not stated · gallery of 30" in " ".join(capsys.readouterr().out.split())


def wrong(capsys, *words):
    assert main(["evaluate", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip().splitlines()[-1]


def test_what_does_not_fit_is_one_sentence(files, capsys):
    base = ["--eeg-embeds", "eeg.npy", "--image-embeds", "image.npy"]
    other = ["--eeg-embeds", "x.npy", "--image-embeds", "image.npy"]
    eeg = np.load("eeg.npy")

    def saved(values):
        np.save("x.npy", values)
        return other

    assert (
        "x.npy has 60 rows, but image.npy has 30 pictures (2 rows a picture?): average the rows of a picture, or say "
        "with --image-index which picture each row saw"
    ) in wrong(capsys, *saved(np.tile(eeg, (2, 1))))
    assert "has 29 rows, but image.npy has 30 pictures: average" in wrong(capsys, *saved(eeg[1:]))
    assert "of size 7, but image.npy of 8: they are not of one space" in wrong(capsys, *saved(eeg[:, :7]))
    holed = eeg.copy()
    holed[[4, 9], 2] = np.nan
    assert "x.npy holds NaN or infinite values in 2 of 30 rows, first in row 4" in wrong(capsys, *saved(holed))
    holed[:] = 0
    assert "Row 0 of x.npy is zero" in wrong(capsys, *saved(holed))
    assert "must hold a matrix of numbers, a row an embedding, but it holds float64 of shape (1, 30, 8)" in wrong(
        capsys, *saved(eeg[None])
    )
    assert "x.npy must hold whole numbers, one number a row, but it holds float64 of shape (30, 8)" in wrong(
        capsys, *base, "--image-index", "x.npy" if saved(eeg) else ""
    )
    saved(np.arange(N) + 1)
    assert "x.npy names rows 1 to 30, but image.npy has rows 0 to 29" in wrong(capsys, *base, "--image-index", "x.npy")
    saved(np.arange(N - 1))
    assert "x.npy has 29 numbers, but eeg.npy has 30 rows" in wrong(capsys, *base, "--image-index", "x.npy")
    gallery = np.load("image.npy")
    gallery[7] = gallery[2]
    np.save("x.npy", gallery)
    assert "Rows 2 and 7 of x.npy are the same picture's (29 of 30 rows differ)" in wrong(
        capsys, "--eeg-embeds", "eeg.npy", "--image-embeds", "x.npy"
    )
    saved(gallery[:10])
    assert "x.npy has 10 rows, but image.npy has 30 pictures: give the name of each" in wrong(
        capsys, *base, "--text-embeds", "x.npy"
    )
    assert "The file none.npy does not exist" in wrong(
        capsys, "--eeg-embeds", "none.npy", "--image-embeds", "image.npy"
    )
    assert "--draws is -1" in wrong(capsys, *base, "--draws", "-1")
    assert "following arguments are required: --image-embeds" in wrong(capsys, "--eeg-embeds", "eeg.npy")
    assert score("--out", "full") == 0
    capsys.readouterr()
    assert "--out full is not empty" in wrong(capsys, *base, "--out", "full")
