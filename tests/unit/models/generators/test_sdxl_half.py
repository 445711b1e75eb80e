"""No black pictures in half precision."""

import pytest
import torch

from eegrecon.errors import ConfigError
from eegrecon.models.generators.sdxl import SDXLGenerator
from tests.builders_sdxl import tiny_denoiser, tiny_vae
from tests.builders_sdxl_published import adapter_of, tiny_published

EMBEDS = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def overflowing_vae():
    """Decodes in float32 and bfloat16; its first activations pass 65504, as SDXL's do deeper inside."""
    vae = tiny_vae()
    vae.register_to_config(force_upcast=True)
    with torch.no_grad():
        vae.decoder.conv_in.weight *= 3e5
    assert vae.decoder.conv_in.weight.abs().max() < 65504  # the weights themselves fit
    return vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from eegrecon.models.generators.pocket_sdxl import save_pocket_sdxl

    folder = tmp_path_factory.mktemp("sdxl")
    save_pocket_sdxl(folder, tiny_denoiser(), overflowing_vae(), torch.float32, {"model": "tiny", "dim": 12})
    return folder


def pictures(folder, torch_dtype, **args):
    generator = SDXLGenerator(base=str(folder), num_inference_steps=2, size=16, torch_dtype=torch_dtype, **args)
    return generator, generator(EMBEDS, generators=seeds(1, 2))


def test_this_autoencoder_is_black_in_half():
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert overflowing_vae().decode(latents).sample.isfinite().all()
    assert not overflowing_vae().half().decode(latents.half()).sample.isfinite().all()


@pytest.mark.parametrize("torch_dtype", ["float16", "bfloat16"])
def test_ours_is_not(folder, torch_dtype):
    generator, made = pictures(folder, torch_dtype)
    assert generator.unet.dtype == getattr(torch, torch_dtype)
    assert generator.vae.dtype == (torch.float32 if torch_dtype == "float16" else torch.bfloat16)
    assert made.isfinite().all()
    assert made.amax(dim=(1, 2, 3)).min() > 0.1
    with torch.no_grad():  # and it stays the same picture
        whole = SDXLGenerator(base=str(folder), num_inference_steps=2, size=16)
        latents = torch.randn(2, 4, 4, 4)
        exact = whole._decode(latents)
        assert (generator._decode(latents) - exact).abs().mean() < (1e-3 if torch_dtype == "float16" else 0.05)


def test_what_overflows_all_the_same_is_refused(folder, monkeypatch):
    generator, _ = pictures(folder, "float16")
    generator.vae.to(torch.float16)
    with pytest.raises(ConfigError, match=r"overflow in float16 .*would be black.*torch_dtype to bfloat16 or float32"):
        generator(EMBEDS, generators=seeds(1, 2))
    broken, _ = pictures(folder, "float32")
    with torch.no_grad():
        broken.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match="overflow in float32"):
        broken(EMBEDS, generators=seeds(1, 2))


def test_few_pictures_are_decoded_together(folder, monkeypatch):
    """What is decoded at once decides the memory, whatever the batch."""
    from eegrecon.models.generators import sdxl

    generator, made = pictures(folder, "float32")
    monkeypatch.setattr(sdxl, "DECODED_PIXELS", 16 * 16)
    seen, decode = [], generator.vae.decode
    monkeypatch.setattr(generator.vae, "decode", lambda part, **rest: (seen.append(len(part)), decode(part, **rest))[1])
    assert (generator(EMBEDS, generators=seeds(1, 2)) - made).abs().max() <= 1e-5
    assert seen == [1, 1]


def test_half_precision_text_encoders_and_latents(tmp_path):
    folder = tiny_published(tmp_path / "sdxl-turbo")
    args = {"base": str(folder), "ip_adapter": str(adapter_of(folder)), "num_inference_steps": 2, "size": 16}
    generator = SDXLGenerator(**args, torch_dtype="bfloat16", captions=True)
    embeds, latents = torch.randn(2, 1024), torch.randn(2, 4, 4, 4)
    made = generator(embeds, latents=latents, prompts=["a cat", "a car"], generators=seeds(1, 2))
    assert made.dtype == torch.float32
    assert made.isfinite().all()
