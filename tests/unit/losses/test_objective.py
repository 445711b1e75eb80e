"""The objective against the losses of ATM's code, written once more in numpy, and its bookkeeping."""

import numpy as np
import pytest
import torch

from eegrecon.losses.contrastive import info_nce, same_image
from eegrecon.losses.objective import EncoderObjective

OFFICIAL = {"positives": "none", "normalise_eeg": False, "normalise_image": False, "logit_scale": "raw"}


def rows(b=6, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    found = {name: rng.normal(size=(b, dim)) for name in ("eeg_embeds", "image_embeds", "text_embeds")}
    return found | {"image_index": np.array([3, 3, 1, 2, 5, 4]), "concept_index": np.array([1, 1, 0, 1, 2, 2])}


def tensors(arrays):
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def atm_clip(eeg, image, scale):
    """ATM's ClipLoss: cross-entropy of raw-scaled dot products, both ways, every other row a negative."""
    logits = scale * eeg @ image.T
    total = 0.0
    for one in (logits, logits.T):
        total += np.mean([np.log(np.exp(row - row[i]).sum()) for i, row in enumerate(one)])
    return total / 2


def loss_of(objective, arrays, scale):
    data = tensors(arrays)
    terms = objective.contrasts(data, torch.tensor(scale, dtype=torch.float64))
    regressions = objective.regressions(data["eeg_embeds"], data["image_embeds"])
    return objective.total(terms | {name: value.mean() for name, value in regressions.items()}).item()


def test_the_official_generation_loss():
    data = rows()
    mse = np.mean((data["eeg_embeds"] - data["image_embeds"]) ** 2)
    wanted = 10 * (0.90 * mse + 0.10 * atm_clip(data["eeg_embeds"], data["image_embeds"], 2.659))
    found = loss_of(EncoderObjective(contrastive=0.1, mse=0.9, scale=10.0, **OFFICIAL), data, 2.659)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_the_official_retrieval_loss():
    data = rows()
    for name in ("image_embeds", "text_embeds"):  # L2-normalised at extraction
        data[name] /= np.linalg.norm(data[name], axis=1, keepdims=True)
    clip = {name: atm_clip(data["eeg_embeds"], data[name], 2.659) for name in ("image_embeds", "text_embeds")}
    wanted = 0.99 * clip["image_embeds"] + 0.01 * clip["text_embeds"]
    found = loss_of(EncoderObjective(contrastive=0.99, mse=0.0, text=0.01, **OFFICIAL), data, 2.659)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_who_is_no_negative():
    data, scale = tensors(rows()), torch.tensor(1.0)
    embeds = data["eeg_embeds"], data["image_embeds"], scale
    shared = {"image": data["image_index"], "concept": data["concept_index"]}
    for positives in ("image", "concept", "none"):
        objective = EncoderObjective(contrastive=1.0, mse=0.0, text=1.0, positives=positives)
        terms = objective.contrasts(data, scale)
        mask = same_image(shared[positives]) if positives in shared else None
        torch.testing.assert_close(terms["contrastive"], info_nce(*embeds, mask))
        mask = None if positives == "none" else same_image(data["concept_index"])  # one text a concept
        torch.testing.assert_close(terms["text"], info_nce(embeds[0], data["text_embeds"], scale, mask))


def test_the_defaults_are_the_three_terms_of_before():
    data, scale = tensors(rows()), torch.tensor(1.0)
    objective = EncoderObjective(contrastive=0.7, mse=0.2)
    assert set(objective.contrasts(data, scale)) == {"contrastive"}
    latents = torch.zeros(6, 2)
    assert set(objective.regressions(data["eeg_embeds"], data["image_embeds"])) == {"mse"}
    assert set(objective.regressions(data["eeg_embeds"], None, latents, latents)) == {"vae_latent"}
    assert objective.total({"contrastive": torch.tensor(2.0), "mse": torch.tensor(10.0)}).item() == pytest.approx(3.4)


def test_siglip_needs_its_bias():
    objective = EncoderObjective(contrastive=1.0, mse=0.0, kind="siglip")
    with pytest.raises(ValueError, match="logit_bias"):
        objective.contrasts(tensors(rows()), torch.tensor(1.0))
