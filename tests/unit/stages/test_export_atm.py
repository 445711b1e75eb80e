"""Out again: the same bits as came in, and our own networks in the official modules with the same numbers."""

import pytest
import torch
from safetensors.torch import load_file

from eegrecon.cli import main
from tests.builders_atm import (
    CHANS,
    DIM,
    HIDDEN,
    TIMES,
    official_april,
    official_encoder,
    official_prior,
    our_encoder,
    our_prior,
    same,
    saved,
    sentence,
)
from tests.official_april import OfficialApril
from tests.official_atm import OfficialATMS
from tests.official_prior import OfficialPrior

pytestmark = pytest.mark.usefixtures("clean_rank")
TIME = {"attention_axis": "time", "position": "none", "subject_token": "none", "token_slice": "all"}
OFFICIAL = {
    "main": (official_encoder, "encoder", [], "for main since 2025-12-24"),
    "earlier main": (official_encoder, "encoder", ["--position", "none"], "which added no positions"),
    "April": (lambda: official_april(linears=3), "encoder", [], "for the code of April 2024"),
    "prior": (official_prior, "prior", [], "the prior of main"),
}


@pytest.mark.parametrize("version", OFFICIAL)
def test_out_again_bit_by_bit(tmp_path, capsys, version):
    build, kind, words, note = OFFICIAL[version]
    state = build().state_dict()
    file = saved(tmp_path / "in.pth", state)
    assert main(["import-atm", file, "--out", str(tmp_path / "run"), *words]) == 0
    capsys.readouterr()
    assert main(["export-atm", str(tmp_path / "run"), "--out", str(tmp_path / "out.pth")]) == 0
    said = capsys.readouterr().err
    same(torch.load(tmp_path / "out.pth", weights_only=True), dict(state))
    assert note in said
    assert ("what its forward never reads is as imported" in said) == (kind == "encoder")
    assert main(["export-atm", str(tmp_path / "run" / kind), "--out", str(tmp_path / "out.safetensors")]) == 0
    back = load_file(tmp_path / "out.safetensors")
    same({name: back[name] for name in state}, dict(state))


@pytest.mark.parametrize("position", ["sinusoidal", "learnable"])
@pytest.mark.parametrize(
    ("known", "args"),
    [
        (None, {"n_subjects": 9}),
        ([8], {"n_subjects": 10}),
        ([10], {"n_subjects": 10}),
        ([1, 3], {"subject_token": "shared"}),
    ],
)
def test_our_encoder_in_the_official_module(tmp_path, capsys, known, args, position):
    ours = our_encoder(tmp_path / "encoder", known=known, position=position, **args)
    assert main(["export-atm", str(tmp_path), "--out", str(tmp_path / "out.pth")]) == 0
    said = capsys.readouterr().err
    assert "for main since 2025-12-24" in said
    assert "what its forward never reads is zero" in said
    official = OfficialATMS(CHANS, TIMES, DIM).eval()
    official.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    eeg = torch.randn(2, CHANS, TIMES)
    beyond = [10] if known == [10] else [10, 11]  # there, ids from ten on share a token
    assert ("the token of subject 10 is the official one" in said) == (known == [10])
    with torch.no_grad():
        for subject in (*range(1, 10), *beyond):  # id 0 is nobody's there
            ids = torch.full((2,), subject)
            torch.testing.assert_close(official(eeg, ids), ours(eeg, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["none", "sinusoidal", "learnable"])
@pytest.mark.parametrize("linear", [True, False])
def test_our_encoder_over_time_in_the_module_of_april(tmp_path, capsys, position, linear):
    ours = our_encoder(tmp_path / "encoder", **{**TIME, "position": position}, subject_linear=linear, hidden=12)
    assert main(["export-atm", str(tmp_path), "--out", str(tmp_path / "out.pth")]) == 0
    assert "for the code of April 2024; what its forward never reads is zero" in capsys.readouterr().err
    official = OfficialApril(CHANS, TIMES, DIM, 12).eval()
    official.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    eeg = torch.randn(3, CHANS, TIMES)
    with torch.no_grad():
        torch.testing.assert_close(official(eeg), ours(eeg, torch.ones(3).long()), atol=1e-5, rtol=1e-5)


def test_channel_moments_go_beside_the_file(tmp_path, capsys):
    ours = our_encoder(tmp_path / "encoder", moments=True)
    out = tmp_path / "out.pth"
    assert "add --normalised-input" in sentence(capsys, "export-atm", tmp_path, "--out", out)
    assert not out.exists()
    assert main(["export-atm", str(tmp_path), "--out", str(out), "--normalised-input"]) == 0
    moments = load_file(tmp_path / "out.channels.safetensors")
    official = OfficialATMS(CHANS, TIMES, DIM).eval()
    official.load_state_dict(torch.load(out, weights_only=True), strict=True)
    eeg, ids = 4 * torch.randn(2, CHANS, TIMES), torch.tensor([2, 2])
    normal = (eeg - moments["channel_mean"][:, None]) / moments["channel_std"][:, None]
    with torch.no_grad():
        torch.testing.assert_close(official(normal, ids), ours(eeg, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({**TIME, "layers": 2}, "it has 2 layers, not 1"),
        ({"subject_token": "none", "token_slice": "all"}, "subject_token is none, where it always has one"),
        ({"subject_linear": True, "layers": 2, "heads": 2}, "subject_linear is true, which it never calls; it has 2 l"),
        ({"n_subjects": 12}, "Subjects 10, 11, 12 have tokens of their own"),
        ({"name": "nice"}, "holds the encoder nice, but only atm_s can be exported"),
    ],
)
def test_what_the_official_encoder_cannot_compute_is_refused(tmp_path, capsys, args, words):
    our_encoder(tmp_path / "encoder", **args)
    assert words in sentence(capsys, "export-atm", tmp_path, "--out", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_our_prior_in_the_official_module_takes_raw_conditions(tmp_path):
    ours = our_prior(tmp_path / "prior")
    assert not torch.equal(ours.cond_mean, torch.zeros(DIM))
    assert main(["export-atm", str(tmp_path), "--out", str(tmp_path / "out.pt")]) == 0
    official = OfficialPrior(DIM, DIM, HIDDEN, 10).eval()
    official.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True), strict=True)
    x, t, c = torch.randn(4, DIM), torch.tensor([0, 9, 400, 999]), torch.randn(4, DIM)
    with torch.no_grad():
        wanted = ours.network(x, t, ours.standardise_cond(c))
        torch.testing.assert_close(official(x, t, c), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(official(x, t), ours.network(x, t), atol=1e-5, rtol=1e-5)


def test_what_the_official_prior_cannot_compute_is_refused(tmp_path, capsys):
    our_prior(tmp_path / "prior", "v_prediction", "std", "unit")
    said = sentence(capsys, "export-atm", tmp_path, "--out", tmp_path / "out.pt")
    assert "its targets are scaled" in said
    assert "its conditions are divided by their length" in said
    assert "prediction_type is v_prediction, not epsilon" in said


def test_which_directory_is_meant(tmp_path, capsys):
    assert "holds no finished encoder/ or prior/" in sentence(capsys, "export-atm", tmp_path, "--out", "x.pth")
    our_prior(tmp_path / "prior")
    our_encoder(tmp_path / "encoder")
    assert "name the directory of one" in sentence(capsys, "export-atm", tmp_path, "--out", "x.pth")
    assert "ends in .pth, .pt, .safetensors" in sentence(capsys, "export-atm", tmp_path, "--out", "x.bin")
