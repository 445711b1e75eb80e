import pytest
import torch

from eegrecon.losses.contrastive import info_nce, same_image
from eegrecon.losses.objective import EncoderObjective
from eegrecon.models.encoders.atm_s import ATMS
from eegrecon.models.encoders.ridge import Ridge
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.models.image_projection import LinearProjection
from eegrecon.models.latent_head import LatentHead
from eegrecon.modules.encoder import EncoderModule
from eegrecon.modules.target_levels import LevelMixing


def module(latent=True, **weights):
    torch.manual_seed(0)
    head = LatentHead(6, (2, 2, 2), dropout=0.0) if latent else None
    network = AlignedEncoder(Ridge(3, 4, 6), head, torch.zeros(3), torch.ones(3))
    weights = {"contrastive": 0.7, "mse": 0.2, "vae_latent": 0.1 if latent else 0.0, **weights}
    return EncoderModule(network, lambda parameters: torch.optim.SGD(parameters, lr=0.1), EncoderObjective(**weights))


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
    net = EncoderModule(network, torch.optim.SGD, EncoderObjective(contrastive=0.7, mse=0.2, vae_latent=0.1))
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


def test_every_term_is_in_the_sum():
    torch.manual_seed(0)
    network = AlignedEncoder(Ridge(3, 4, 6), None, torch.zeros(3), torch.ones(3), logit_bias=-1.0)
    objective = EncoderObjective(contrastive=0.5, mse=0.2, cosine=0.3, text=0.1, scale=2.0, kind="siglip")
    net = EncoderModule(network, torch.optim.SGD, objective)
    data = batch()
    data["targets"]["text"] = torch.randn(5, 6)
    out = net.training_step(data, 0)
    terms = {"contrastive", "text", "mse", "cosine"}
    assert {*out} == {"loss", *terms, "logit_scale", "logit_bias", "n_trials"}
    total = 0.5 * out["contrastive"] + 0.1 * out["text"] + 0.2 * out["mse"] + 0.3 * out["cosine"]
    torch.testing.assert_close(out["loss"], 2 * total)
    rows = net.validation_step(data, 0)
    assert {"text_embeds", "cosine", "mse", "logit_bias"} <= {*rows}


def test_a_projection_is_on_the_image_side_alone_and_learns():
    torch.manual_seed(0)
    projection = LinearProjection(6, dim=4)
    network = AlignedEncoder(Ridge(3, 4, 4), None, torch.zeros(3), torch.ones(3), image_projection=projection)
    net = EncoderModule(network, torch.optim.SGD, EncoderObjective(contrastive=1.0, mse=0.0))
    data = batch()
    out = net.training_step(data, 0)
    assert "mse" not in out
    image_embeds = projection(data["targets"]["image"])
    embeds = network(data["eeg"], data["subject"])
    wanted = info_nce(embeds, image_embeds, network.logit_scale, same_image(data["image_index"]))
    torch.testing.assert_close(out["contrastive"], wanted)
    out["loss"].backward()
    assert projection.weight.grad.abs().sum() > 0
    torch.testing.assert_close(net.validation_step(data, 0)["image_embeds"], image_embeds)
    with pytest.raises(ValueError, match="constant"):
        EncoderModule(network, torch.optim.SGD, EncoderObjective(contrastive=1.0, mse=0.1))


def test_a_fixed_temperature_is_not_given_to_the_optimiser():
    network = AlignedEncoder(Ridge(3, 4, 6), None, torch.zeros(3), torch.ones(3), learn_logit_scale=False)
    net = EncoderModule(network, lambda p: torch.optim.SGD(p, lr=0.1), EncoderObjective(contrastive=1.0, mse=0.0))
    assert len(net.configure_optimizers().param_groups[0]["params"]) == 2
    net.training_step(batch(), 0)["loss"].backward()
    assert network.logit_scale.grad is None


def test_siglip_and_a_bias_go_together():
    network = AlignedEncoder(Ridge(3, 4, 6), None, torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="logit_bias"):
        EncoderModule(network, torch.optim.SGD, EncoderObjective(contrastive=1.0, mse=0.0, kind="siglip"))


def of_many(n=2000):
    targets = {"image": torch.zeros(n, 2), "levels": torch.arange(3.0)[None, :, None].expand(n, 3, 2)}
    return {
        "eeg": torch.zeros(n, 3, 4),
        "subject": torch.full((n,), 7),
        "image_index": torch.arange(n),
        "concept_index": torch.arange(n),
        "repetition": torch.zeros(n),
        "targets": targets,
    }


def test_some_rows_forget_their_subject_in_training_alone():
    net = module(latent=False)
    net.subject_dropout, net.seed = 0.25, 3
    data = of_many()
    seen = [net.training_view(data, step)["subject"] for step in (0, 0, 1)]
    assert set(seen[0].tolist()) == {0, 7}
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert set(data["subject"].tolist()) == {7}  # the rows themselves are left alone


def test_rows_are_trained_on_their_level_and_validated_on_the_target():
    net = module(latent=False)
    net.levels = LevelMixing("mean", 3, 0, 2000)
    data = of_many()
    assert net.training_view(data, 0)["targets"]["image"].unique().tolist() == [1]
    assert data["targets"]["image"].unique().tolist() == [0]
    net.levels = LevelMixing("random", 3, 0, 2000)
    chosen = net.training_view(data, 0)["targets"]["image"][:, 0]
    assert chosen.long().bincount().tolist() == pytest.approx([667, 667, 667], abs=80)
    assert not torch.equal(chosen, net.training_view(data, 1)["targets"]["image"][:, 0])


def test_without_options_a_batch_is_trained_on_as_it_is():
    data = of_many(3)
    assert module(latent=False).training_view(data, 0) is data
