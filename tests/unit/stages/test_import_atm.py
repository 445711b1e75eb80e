"""Official checkpoints in: the same numbers as the official modules, and every reason why not."""

import pytest
import torch

import eegrecon
from eegrecon.artifacts import read_manifest
from eegrecon.cli import main
from tests.builders_atm import CHANS, TIMES, official_april, official_encoder, official_prior, saved, sentence
from tests.official_prior import OfficialPrior

pytestmark = pytest.mark.usefixtures("clean_rank")


@pytest.mark.parametrize("sizes", [{}, {"n_chans": 63, "n_times": 250, "dim": 1024}], ids=["small", "published"])
def test_the_imported_encoder_gives_the_official_embeddings_for_every_id(tmp_path, capsys, sizes):
    official = official_encoder(**sizes)
    file = saved(tmp_path / "40.pth", official.state_dict())
    assert main(["import-atm", file, "--out", str(tmp_path / "run"), "--subject", "8"]) == 0
    assert "load and embed can use it, evaluate and train-prior need --exp NAME" in capsys.readouterr().err
    ours = eegrecon.load(tmp_path / "run" / "encoder")
    eeg = torch.randn(2, official.n_chans, sizes.get("n_times", TIMES))
    seen = []
    with torch.no_grad():
        for subject in range(1, 13):
            ids = torch.full((2,), subject)
            seen.append(official(eeg, ids))
            torch.testing.assert_close(ours(eeg, ids), seen[-1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)  # subjects differ, so a wrong row would show
    assert torch.equal(seen[9], seen[11])  # ids from 10 on share a token
    assert ours.logit_scale == official.logit_scale


def test_a_published_sized_encoder_knows_its_channels(tmp_path):
    file = saved(tmp_path / "40.pth", official_encoder(n_chans=63, n_times=250, dim=16).state_dict())
    assert main(["import-atm", file, "--out", str(tmp_path), "--subject", "8"]) == 0
    data = read_manifest(tmp_path / "encoder").data
    assert (data["channels"][0], data["channels"][-1], data["sfreq"], data["subjects"]) == ("Fp1", "O2", 250.0, [8])


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_the_imported_prior_predicts_the_official_noise(tmp_path, conditional, published):
    torch.manual_seed(1)
    official = OfficialPrior().eval() if published else official_prior()
    dim = official.output_layer.out_features
    file = saved(tmp_path / "diffusion_prior.pt", official.state_dict())
    assert main(["import-atm", file, "--out", str(tmp_path)]) == 0
    ours = eegrecon.load(tmp_path / "prior")
    x, t, c = torch.randn(4, dim), torch.tensor([0, 1, 500, 999]), torch.randn(4, dim)
    with torch.no_grad():
        wanted = official(x, t, c if conditional else None)
        condition = ours.standardise_cond(c) if conditional else None
        found = ours.network(ours.standardise_target(x), t, condition)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert ours.scheduler.config.prediction_type == "epsilon"
    assert (ours.scheduler.config.beta_schedule, ours.scheduler.config.num_train_timesteps) == ("linear", 1000)


def test_encoders_without_positions_and_of_the_develop_branch(tmp_path):
    official = official_encoder(n_subjects=2)
    file = saved(tmp_path / "in.pth", official.state_dict())
    words = ["--position", "none", "--token-slice", "all"]
    assert main(["import-atm", file, "--out", str(tmp_path), *words]) == 0
    ours = eegrecon.load(tmp_path / "encoder")
    eeg = torch.randn(3, CHANS, TIMES)
    official.encoder.enc_embedding.position_embedding.pe.zero_()
    with torch.no_grad():
        for subject in (1, 2, 9):
            x = official_all(official, eeg, torch.full((3,), subject))
            torch.testing.assert_close(ours(eeg, torch.full((3,), subject)), x, atol=1e-5, rtol=1e-5)


def official_all(official, eeg, subject):
    """The official forward with the slice of develop: all channels, no subject token."""
    table = official.encoder.enc_embedding.subject_embedding
    own = subject[0] < table.subject_embedding.num_embeddings
    token = table.subject_embedding(subject) if own else table.shared_embedding.expand(len(eeg), -1)
    x = official._layer(torch.cat([token[:, None], official.encoder.enc_embedding.value_embedding(eeg)], dim=1))
    x = official.encoder.encoder.norm(x)[:, 1:]
    return official._project(official.enc_eeg[0].projection(official.enc_eeg[0].tsconv(x[:, None])))


@pytest.mark.parametrize("sizes", [{}, {"n_chans": 63, "n_times": 250, "dim": 1024, "hidden": 2048}])
def test_the_imported_encoder_of_april_gives_the_official_embeddings(tmp_path, sizes):
    official = official_april(**sizes)
    file = saved(tmp_path / "40.pth", official.state_dict())
    assert main(["import-atm", file, "--out", str(tmp_path), "--subject", "8"]) == 0
    ours = eegrecon.load(tmp_path / "encoder")
    eeg = torch.randn(3, sizes.get("n_chans", CHANS), sizes.get("n_times", TIMES))
    with torch.no_grad():
        wanted = official(eeg)
        torch.testing.assert_close(ours(eeg, torch.tensor([1, 8, 12])), wanted, atol=1e-5, rtol=1e-5)
        official.attention_model.pos_encoder.pe.zero_()
        assert not torch.allclose(official(eeg), wanted, atol=1e-3)  # positions matter, so a missing one would show


def test_options_that_would_be_ignored_are_refused(tmp_path, capsys):
    april = saved(tmp_path / "april.pth", official_april().state_dict())
    prior = saved(tmp_path / "prior.pth", official_prior().state_dict())
    said = sentence(capsys, "import-atm", april, "--out", tmp_path, "--position", "none")
    assert "the encoder of April 2024, which always adds positions over time: leave out --position" in said
    assert "a prior: leave out --position" in sentence(
        capsys, "import-atm", prior, "--out", tmp_path, "--token-slice", "all"
    )


def test_wrapped_state_dicts(tmp_path):
    official = official_encoder()
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in official.state_dict().items()}}
    assert main(["import-atm", saved(tmp_path / "in.pth", wrapped), "--out", str(tmp_path)]) == 0
    ours, eeg, ids = eegrecon.load(tmp_path / "encoder"), torch.randn(2, CHANS, TIMES), torch.tensor([3, 3])
    with torch.no_grad():
        torch.testing.assert_close(ours(eeg, ids), official(eeg, ids), atol=1e-5, rtol=1e-5)


def test_every_wrong_key_is_listed(tmp_path, capsys):
    state = dict(official_encoder().state_dict())
    del state["proj_eeg.2.bias"], state["encoder.encoder.norm.weight"]
    state |= {"proj_eeg.3.bias": torch.zeros(2), "proj_eeg.2.weight": torch.zeros(3)}
    said = sentence(capsys, "import-atm", saved(tmp_path / "in.pth", state), "--out", tmp_path)
    assert "is not the official ATM-S encoder: missing: encoder.encoder.norm.weight, proj_eeg.2.bias" in said
    assert "unknown: proj_eeg.3.bias" in said
    assert "proj_eeg.2.weight is (3,) and should be (8,)" in said
    april = dict(official_april().state_dict())
    del april["attention_model.pos_encoder.pe"], april["attention_model.encoder_layer.linear1.bias"]
    said = sentence(capsys, "import-atm", saved(tmp_path / "in.pth", april), "--out", tmp_path)
    assert "is not the official ATM-S encoder of April 2024: missing: attention_model.pos_encoder.pe, atten" in said
    prior = dict(official_prior().state_dict())
    del prior["decode_layers.1.0.weight"]
    said = sentence(capsys, "import-atm", saved(tmp_path / "in.pth", prior), "--out", tmp_path)
    assert "is not the official diffusion prior: missing: decode_layers.1.0.weight" in said
    assert not (tmp_path / "encoder").exists()
    assert not (tmp_path / "prior").exists()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"x.self_attn.in_proj_weight": 1, "enc_eeg.0.tsconv.0.weight": 1}, "another ATM with attention over time"),
        ({"x.self_attn.in_proj_weight": 1, "eegnet.conv_temporal.weight": 1}, "ATM-E with attention over time"),
        ({"encoder.enc_embedding.value_embedding.0.weight": 1}, "the ATM-S of the joint script"),
        ({"enc_eeg.0.tsconv.0.weight": 1}, "NICE"),
        ({"foo": 1, "bar": 1}, r"a network that eegrecon does not know (foo, bar)"),
    ],
)
def test_other_networks_are_named(tmp_path, capsys, state, words):
    file = saved(tmp_path / "in.pth", {name: torch.zeros(value) for name, value in state.items()})
    said = sentence(capsys, "import-atm", file, "--out", tmp_path)
    assert words in said
    assert "only the ATM-S encoders of main" in said


def test_no_checkpoint_at_all(tmp_path, capsys):
    assert "does not exist" in sentence(capsys, "import-atm", tmp_path / "no.pth", "--out", tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    assert "cannot be read as a file of tensors" in sentence(
        capsys, "import-atm", tmp_path / "text.pth", "--out", tmp_path
    )
    said = sentence(capsys, "import-atm", saved(tmp_path / "one.pth", torch.zeros(3)), "--out", tmp_path)
    assert "holds a tensor of shape (3,), expected a state dict" in said
    state = dict(official_prior().state_dict())
    state["output_layer.bias"] = torch.full_like(state["output_layer.bias"], torch.nan)
    said = sentence(capsys, "import-atm", saved(tmp_path / "nan.pth", state), "--out", tmp_path)
    assert "NaN or infinite weights in output_layer.bias" in said
    said = sentence(capsys, "import-atm", tmp_path / "nan.pth", "--out", tmp_path, "data.set=x")
    assert "add --exp NAME" in said


def test_a_second_import_is_up_to_date_and_another_file_is_refused(tmp_path, capsys):
    first = saved(tmp_path / "one.pth", official_prior().state_dict())
    assert main(["import-atm", first, "--out", str(tmp_path)]) == 0
    created = (tmp_path / "prior" / "manifest.json").stat().st_mtime_ns
    assert main(["import-atm", first, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "prior" / "manifest.json").stat().st_mtime_ns == created
    other = {name: value + 1 for name, value in official_prior().state_dict().items()}
    second = saved(tmp_path / "two.pth", other)
    assert "the input 'checkpoint'" in sentence(capsys, "import-atm", second, "--out", tmp_path)
    assert main(["import-atm", second, "--out", str(tmp_path), "--overwrite"]) == 0
