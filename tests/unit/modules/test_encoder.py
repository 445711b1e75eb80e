import pytest
import torch

from eegrecon.losses.contrastive import info_nce, same_image
from eegrecon.models.encoders.atm_s import ATMS
from eegrecon.models.encoders.ridge import Ridge
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.models.latent_head import LatentHead
from eegrecon.modules.encoder import EncoderModule


def module(latent=True, **weights):
    torch.manual_seed(0)
    head = LatentHead(6, (2, 2, 2), dropout=0.0) if latent else None
    network = AlignedEncoder(Ridge(3, 4, 6), head, torch.zeros(3), torch.ones(3))
    weights = {"contrastive": 0.7, "mse": 0.2, "vae_latent": 0.1 if latent else 0.0, **weights}
    return EncoderModule(network, lambda parameters: torch.optim.SGD(parameters, lr=0.1), **weights)


def batch():
    torch.manual_seed(1)
    return {
        "eeg": torch.randn(5, 3, 4),
        "subject": torch.ones(5, dtype=torch.long),
        "image_index": torch.tensor([3, 3, 1, 2, 5]),
        "concept_index": torch.tensor([1, 1, 0, 1, 2]),
        "repetition": torch.arange(5),
        "targets": {"image": torch.randn(5, 6), "vae_latent": torch.randn(5, 2, 2, 2)},
    }


def test_the_loss_is_the_weighted_sum_of_its_terms():
    net, data = module(), batch()
    out = net.training_step(data, 0)
    embeds = net.network(data["eeg"], data["subject"])
    contrastive = info_nce(embeds, data["targets"]["image"], net.network.logit_scale, same_image(data["image_index"]))
    mse = (embeds - data["targets"]["image"]).square().mean()
    latent = (net.network.latent_head(embeds) - data["targets"]["vae_latent"]).square().mean()
    torch.testing.assert_close(out["loss"], 0.7 * contrastive + 0.2 * mse + 0.1 * latent)
    assert {*out} == {"loss", "contrastive", "mse", "vae_latent", "logit_scale", "n_trials"}
    assert out["n_trials"] == 5


def test_without_a_latent_head_the_term_is_absent():
    net, data = module(latent=False), batch()
    del data["targets"]["vae_latent"]
    assert "vae_latent" not in net.training_step(data, 0)
    assert "vae_latent" not in net.validation_step(data, 0)


def test_validation_returns_one_row_a_trial():
    out = module().validation_step(batch(), 0)
    assert all(len(value) == 5 for name, value in out.items() if name != "logit_scale")
    assert {"eeg_embeds", "image_embeds", "image_index", "concept_index", "subject", "repetition", "mse"} <= {*out}


def test_bf16_autocast_gives_nearly_the_same_loss():
    torch.manual_seed(0)
    encoder = ATMS(4, 80, 6, dropout=0.0, conv_dropout=0.0, head_dropout=0.0)
    network = AlignedEncoder(encoder, LatentHead(6, (2, 2, 2), dropout=0.0), torch.zeros(4), torch.ones(4))
    net = EncoderModule(network, torch.optim.SGD, contrastive=0.7, mse=0.2, vae_latent=0.1)
    data = {**batch(), "eeg": torch.randn(5, 4, 80)}
    full = net.training_step(data, 0)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = net.training_step(data, 0)["loss"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.0)
    half.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_head_and_weight_go_together():
    with pytest.raises(ValueError, match="go together"):
        module(latent=True, vae_latent=0.0)
    with pytest.raises(ValueError, match="go together"):
        module(latent=False, vae_latent=0.1)
