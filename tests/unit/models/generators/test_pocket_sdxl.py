import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from eegrecon.models.generators.pocket_sdxl import (
    PocketDenoiser,
    build_scheduler,
    build_unet,
    build_vae,
    ip_adapter_state_dict,
    plain_unet,
    save_pocket_sdxl,
)
from tests.builders_sdxl import tiny_denoiser, tiny_sdxl, tiny_vae


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_shipped_size_fits_the_limits():
    denoiser, vae = PocketDenoiser(build_unet(), dim=256), build_vae()
    assert 2 * count(denoiser) < 15 * 2**20  # fp16 bytes a file
    assert 2 * (count(denoiser) + count(vae)) < 30 * 2**20


def test_published_layout(tmp_path):
    tiny_sdxl(tmp_path, dim=12, conditioning={"model": "tiny", "dim": 12})
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["text_encoder"] == [None, None]
    adapter = load_file(tmp_path / "ip_adapter" / "ip-adapter_pocket.safetensors")
    assert adapter["image_proj.proj.weight"].shape == (4 * 8, 12)
    assert adapter["image_proj.norm.weight"].shape == (8,)
    numbers = sorted({int(key.split(".")[1]) for key in adapter if key.startswith("ip_adapter.")})
    assert numbers == list(range(1, 2 * len(numbers), 2))
    assert {key.split(".", 2)[2] for key in adapter if key.startswith("ip_adapter.")} == {
        "to_k_ip.weight",
        "to_v_ip.weight",
    }
    assert json.loads((tmp_path / "ip_adapter" / "conditioning.json").read_text())["dim"] == 12


def test_saving_rounds_to_fp16_and_leaves_the_trained_networks_alone(tmp_path):
    denoiser, vae = tiny_denoiser(), tiny_vae()
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    save_pocket_sdxl(tmp_path, denoiser, vae)
    after = denoiser.state_dict()
    assert all(torch.equal(before[key], after[key]) and after[key].dtype == torch.float32 for key in before)
    assert vae.dtype == torch.float32
    with safe_open(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        assert all(file.get_tensor(key).dtype == torch.float16 for key in file.keys())  # noqa: SIM118


def test_plain_unet_and_adapter_hold_every_parameter_between_them():
    denoiser = tiny_denoiser()
    assert count(plain_unet(denoiser)) + sum(t.numel() for t in ip_adapter_state_dict(denoiser).values()) == count(
        denoiser
    )


def test_every_adapter_weight_learns_and_dropping_equals_a_zero_embedding():
    denoiser = tiny_denoiser()
    noisy, embeds = torch.randn(3, 4, 4, 4), torch.randn(3, 12)
    timesteps = torch.tensor([0, 500, 999])
    drop = torch.tensor([True, False, True])
    out = denoiser(noisy, timesteps, embeds, drop=drop)
    zeroed = embeds * ~drop[:, None]
    assert torch.equal(out, denoiser(noisy, timesteps, zeroed))
    assert not torch.allclose(out, denoiser(noisy, timesteps, embeds))
    denoiser(noisy, timesteps, embeds).square().mean().backward()
    named = dict(denoiser.named_parameters())
    adapter = [key for key in named if "_ip." in key or "encoder_hid_proj" in key]
    assert len(adapter) == len(ip_adapter_state_dict(denoiser))
    assert all(named[key].grad is not None and named[key].grad.abs().sum() > 0 for key in adapter)


def test_scheduler_ends_in_pure_noise_and_starts_there():
    scheduler = build_scheduler()
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(0, abs=1e-8)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999
    assert not scheduler.config.clip_sample
