"""`embed`: what `load` computes, for plain files; every slip in one sentence, and no half-written file."""

import numpy as np
import pytest
import torch

import eegrecon
from eegrecon.cli import main
from eegrecon.stages import embed
from tests.builders_atm import CHANS, DIM, TIMES, our_encoder, our_prior, sentence

pytestmark = pytest.mark.usefixtures("clean_rank")


@pytest.fixture
def place(tmp_path):
    """A run with an encoder that knows subjects 1 and 3 and normalises its channels, and ten trials."""
    our_encoder(tmp_path / "run" / "encoder", known=[1, 3], moments=True)
    np.save(tmp_path / "eeg.npy", trials())
    return tmp_path


def trials(n=10):
    rng = np.random.default_rng(0)
    scale = np.arange(CHANS)[:, None] + 1.0  # as in the moments: mean 0…4, deviation 1…5
    return (rng.standard_normal((n, CHANS, TIMES)) * scale + scale - 1).astype(np.float32)


def words(place, **changes):
    options = {"run": place / "run", "eeg": place / "eeg.npy", "subject": 3, "out": place / "out.npy", **changes}
    return ["embed", *(word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value)))]


def wanted(place, eeg, subject):
    with torch.no_grad():
        ids = torch.full((len(eeg),), subject)
        return eegrecon.load(place / "run" / "encoder")(torch.from_numpy(eeg), ids).numpy()


def test_the_file_holds_what_load_computes_whatever_the_batch(place, capsys):
    assert main(words(place)) == 0
    said = capsys.readouterr().err
    assert said.strip().splitlines()[-1] == f"eegrecon: embed: wrote {place / 'out.npy'}: float32 (10, {DIM})"
    assert "unknown" not in said
    assert "unit" not in said
    found = np.load(place / "out.npy", allow_pickle=False)
    assert (found.dtype, found.shape) == (np.float32, (10, DIM))
    np.testing.assert_allclose(found, wanted(place, trials(), 3), atol=1e-5)
    assert np.abs(found - wanted(place, trials(), 1)).max() > 1e-3  # it matters whose trials they are
    assert main(words(place, run=place / "run" / "encoder", batch_size=3)) == 0
    np.testing.assert_allclose(np.load(place / "out.npy"), found, atol=1e-5)


@pytest.mark.parametrize("how", ["float64", "float16", "fortran", "big endian", "sliced"])
def test_any_float_layout(place, how):
    eeg = trials()
    stored = {
        "float64": eeg.astype(np.float64),
        "float16": eeg.astype(np.float16),
        "fortran": np.asfortranarray(eeg),
        "big endian": eeg.astype(">f4"),
        "sliced": np.concatenate([eeg, eeg], axis=2)[:, :, :TIMES],
    }[how]
    np.save(place / "eeg.npy", stored)
    assert main(words(place)) == 0
    tolerance = 2e-2 if how == "float16" else 1e-5
    np.testing.assert_allclose(np.load(place / "out.npy"), wanted(place, eeg, 3), atol=tolerance)


def test_an_unknown_subject_and_an_odd_unit_are_said(place, capsys):
    assert main(words(place, subject=2)) == 0
    said = capsys.readouterr().err
    assert "subject 2 is none of those the encoder was trained on (1, 3): it is treated as unknown" in said
    np.testing.assert_allclose(np.load(place / "out.npy"), wanted(place, trials(), 0), atol=1e-5)
    np.save(place / "eeg.npy", trials() * 1e-6)  # volts
    assert main(words(place)) == 0
    assert (
        "varies 1e-06 times as much as the encoder's training trials: is it in their unit?" in capsys.readouterr().err
    )


def test_single_odd_channels_are_said(place, capsys):
    eeg = trials()
    eeg[:, 0], eeg[:, 1] = 0, eeg[:, 1] * 1e6
    np.save(place / "eeg.npy", eeg)
    assert main(words(place)) == 0
    said = capsys.readouterr().err
    assert f"channels of {place / 'eeg.npy'} vary more or less than in training, by this factor: " in said
    assert f"channels of {place / 'eeg.npy'} are constant within every trial: " in said
    assert "their unit?" not in said


@pytest.mark.parametrize(
    ("eeg", "message"),
    [
        (np.zeros((2, CHANS + 1, TIMES), np.float32), f"has {CHANS + 1} channels and {TIMES} samples"),
        (np.zeros((2, TIMES, CHANS), np.float32), f"has {TIMES} channels and {CHANS} samples"),
        (
            np.zeros((CHANS, TIMES), np.float32),
            f"must hold (trials, channels, samples), at least one of each, got shape ({CHANS}, {TIMES})",
        ),
        (np.zeros((0, CHANS, TIMES), np.float32), f"at least one of each, got shape (0, {CHANS}, {TIMES})"),
        (np.zeros((2, CHANS, TIMES), np.int16), "must hold floats, got int16"),
    ],
)
def test_wrong_arrays(place, capsys, eeg, message):
    np.save(place / "eeg.npy", eeg)
    assert message in sentence(capsys, *words(place))
    assert not (place / "out.npy").exists()


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_an_odd_value_far_inside_leaves_what_was_there(place, capsys, value):
    (place / "out.npy").write_bytes(b"earlier")
    eeg = trials().astype(float)
    eeg[7, 2, 80] = value
    np.save(place / "eeg.npy", eeg)
    capsys.readouterr()
    assert main(words(place, batch_size=2)) == 2
    assert f"holds {value} in trial 7, channel 2, sample 80 (counted from 0)" in capsys.readouterr().err
    assert (place / "out.npy").read_bytes() == b"earlier"
    assert sorted(path.name for path in place.iterdir()) == ["eeg.npy", "out.npy", "run"]


def test_wrong_files_and_options(place, capsys):
    assert "does not exist" in sentence(capsys, *words(place, eeg=place / "no.npy"))
    (place / "text.npy").write_text("hello")
    assert "cannot be read as a plain .npy array" in sentence(capsys, *words(place, eeg=place / "text.npy"))
    np.save(place / "dict.npy", {"eeg": 1}, allow_pickle=True)
    assert "cannot be read as a plain .npy array" in sentence(capsys, *words(place, eeg=place / "dict.npy"))
    np.savez(place / "two.npz", a=trials())
    assert "is an archive of several arrays" in sentence(capsys, *words(place, eeg=place / "two.npz"))
    assert "--subject is -1" in sentence(capsys, *words(place, subject=-1))
    assert "--batch-size is 0" in sentence(capsys, *words(place, batch_size=0))
    assert "ends in .npy" in sentence(capsys, *words(place, out=place / "out.pt"))
    assert "are the same file" in sentence(capsys, *words(place, out=place / "eeg.npy"))
    assert "--device gpu cannot be used" in sentence(capsys, *words(place, device="gpu"))
    assert "holds no finished encoder" in sentence(capsys, *words(place, run=place))
    our_prior(place / "prior")
    assert "was made by train-prior" in sentence(capsys, *words(place, run=place / "prior"))


def test_big_files_are_mapped_and_read_batch_by_batch(place, monkeypatch):
    sizes, batch = [], embed._batch

    def watched(eeg, path, start, size):
        assert isinstance(eeg, np.memmap)
        sizes.append(len(rows := batch(eeg, path, start, size)))
        return rows

    monkeypatch.setattr(embed, "_batch", watched)
    assert main(words(place, batch_size=4)) == 0
    assert sizes == [4, 4, 2]
