from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eegrecon.errors import ConfigError, DataError
from eegrecon.models.generators.latents import load_vae, vae_file
from tests.builders_sdxl import tiny_sdxl, tiny_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


def test_latents_are_the_scaled_posterior_mean(folder):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
    target = load_vae(str(folder), size=16)
    latents = target.encode(pictures)
    assert latents.shape == (3, *target.shape) == (3, 4, 4, 4)
    assert latents.dtype == np.float32
    x = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.no_grad():
        expected = tiny_vae().encode(x).latent_dist.mean * 0.7
    np.testing.assert_allclose(latents, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(latents, target.encode(pictures))
    assert target.kind == "vae_latent"
    assert target.header()["scaling_factor"] == pytest.approx(0.7)
    assert target.header()["dim"] == 64


def test_errors_say_what_to_do(folder, tmp_path):
    with pytest.raises(DataError, match=rf"no autoencoder at .*--local-dir {tmp_path}` or name another `base`"):
        load_vae(str(tmp_path))
    with pytest.raises(ConfigError, match="multiple of 4"):
        load_vae(str(folder), size=18)


def test_a_repository_that_was_fetched_before_is_found_in_the_cache(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: asked.append(a) or "/cache/snap/vae/file")
    assert vae_file("stabilityai/sdxl-turbo") == Path("/cache/snap/vae/file")
    assert asked == [("stabilityai/sdxl-turbo", "vae/diffusion_pytorch_model.safetensors")]
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: None)
    with pytest.raises(
        DataError,
        match=r"no autoencoder at stabilityai/sdxl-turbo; fetch it with `hf download "
        r"stabilityai/sdxl-turbo vae/config\.json vae/diffusion_pytorch_model\.safetensors`",
    ):
        load_vae("stabilityai/sdxl-turbo")
