import pytest
import torch
from safetensors.torch import load_file, save_file

import eegrecon
from eegrecon.artifacts import new_manifest, open_stage, write_manifest
from eegrecon.config import ENCODERS, LATENT_HEADS, PRIORS, Choice, config_hash, load, to_dict, to_yaml
from eegrecon.diffusion.objectives import build_scheduler
from eegrecon.diffusion.scaled import ScaledPrior
from eegrecon.errors import ArtifactError
from eegrecon.loading import load_stage
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.registry import resolve

pytestmark = pytest.mark.usefixtures("clean_rank")
CHANNELS, TIMES, DIM, LATENT = 6, 100, 8, (4, 16, 16)


def finish(directory, stage, cfg, state, **interface):
    open_stage(directory, stage, config_hash(cfg), to_yaml(cfg), {})
    save_file(state, directory / "model.safetensors")
    manifest = new_manifest(
        stage,
        command="x",
        config_hash=config_hash(cfg),
        seed=0,
        data={"channels": [f"C{index}" for index in range(CHANNELS)], "n_times": TIMES},
        interface={"dim": DIM, **interface},
        outputs={"model.safetensors": {}},
    )
    write_manifest(directory, manifest)


@pytest.fixture
def encoder(tmp_path):
    cfg = load("train-encoder", "pocket")
    torch.manual_seed(0)
    network = AlignedEncoder(
        resolve(ENCODERS, cfg.encoder, n_chans=CHANNELS, n_times=TIMES, dim=DIM),
        resolve(LATENT_HEADS, cfg.latent_head, dim=DIM, latent_shape=LATENT),
        torch.arange(CHANNELS).float(),
        torch.arange(CHANNELS) + 1.0,
    )
    finish(tmp_path / "encoder", "train-encoder", cfg, network.state_dict(), latent_shape=list(LATENT))
    return tmp_path / "encoder", network.eval()


def test_the_encoder_comes_back_ready(encoder):
    directory, network = encoder
    loaded = eegrecon.load(directory)
    eeg, subject = torch.randn(3, CHANNELS, TIMES), torch.ones(3, dtype=torch.long)
    assert not loaded.training
    assert {(value.dtype, value.device.type) for value in loaded.parameters()} == {(torch.float32, "cpu")}
    embeds = loaded(eeg, subject)
    torch.testing.assert_close(embeds, network(eeg, subject), rtol=0, atol=0)
    torch.testing.assert_close(loaded.latent_head(embeds), network.latent_head(embeds), rtol=0, atol=0)
    assert loaded.logit_scale == network.logit_scale


def test_the_prior_comes_back_with_its_scales(tmp_path):
    cfg = load("train-prior", "pocket", None, ["prior.args={hidden: [16, 8], time_embed_dim: 8}"])
    prior = ScaledPrior(resolve(PRIORS, cfg.prior, dim=DIM, cond_dim=DIM), build_scheduler(), dim=DIM, cond_dim=DIM)
    prior.target_scale.fill_(3.0)
    finish(tmp_path / "prior", "train-prior", cfg, prior.state_dict())
    loaded = eegrecon.load(tmp_path / "prior")
    assert not loaded.training
    for name, value in prior.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_network_that_does_not_fit_is_one_sentence(tmp_path, encoder):
    directory, _ = encoder
    state = load_file(directory / "model.safetensors")
    del state[next(key for key in state if key.startswith("encoder.") and key.endswith(".weight"))]
    finish(tmp_path / "other", "train-encoder", load("train-encoder", "pocket"), state, latent_shape=list(LATENT))
    with pytest.raises(ArtifactError, match=r"do not fit the network that .*config\.yaml names: .*Missing key"):
        eegrecon.load(tmp_path / "other")
    state = {**load_file(directory / "model.safetensors"), "encodr.weight": torch.zeros(1)}
    finish(tmp_path / "more", "train-encoder", load("train-encoder", "pocket"), state, latent_shape=list(LATENT))
    with pytest.raises(ArtifactError, match=r"do not fit .*Unexpected key.*encodr\.weight"):
        eegrecon.load(tmp_path / "more")


def test_tampering_and_absence_are_found(tmp_path, encoder):
    directory, _ = encoder
    content = bytearray((directory / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not the file its manifest describes"):
        eegrecon.load(directory)
    with pytest.raises(ArtifactError, match="does not exist"):
        eegrecon.load(tmp_path / "none")


def test_a_directory_without_a_network(tmp_path):
    cfg = {"seed": 0}
    open_stage(tmp_path, "evaluate", config_hash(cfg), to_yaml(cfg), {})
    write_manifest(tmp_path, new_manifest("evaluate", command="x", config_hash="0", seed=0))
    with pytest.raises(ArtifactError, match=r"\(evaluate\) holds no network"):
        eegrecon.load(tmp_path)


def test_choice_round_trips_through_config_yaml(encoder):
    directory, _ = encoder
    assert Choice(**load_stage(directory).config["encoder"]) == load("train-encoder", "pocket").encoder
    assert load_stage(directory).config == to_dict(load("train-encoder", "pocket"))
