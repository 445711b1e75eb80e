import shutil

import pytest
import torch

from eegrecon.errors import ConfigError, DataError
from eegrecon.models.generators import sdxl_files
from eegrecon.models.generators.pocket_sdxl import build_scheduler
from eegrecon.models.generators.sdxl import SDXLGenerator
from tests.builders_sdxl import tiny_denoiser, tiny_sdxl, tiny_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"), conditioning={"model": "tiny", "dim": 12})


def build(folder, **args):
    return SDXLGenerator(**{"base": str(folder), "num_inference_steps": 4, "guidance_scale": 2.0, "size": 16, **args})


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


EMBEDS = 2 * torch.randn(3, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 2.5])
def test_equals_a_sampling_loop_written_by_hand(folder, guidance_scale):
    pictures = build(folder, guidance_scale=guidance_scale)(EMBEDS, generators=seeds(1, 2, 3))
    denoiser, vae, scheduler = tiny_denoiser(), tiny_vae(), build_scheduler()
    scheduler.set_timesteps(4)
    latents = torch.stack([torch.randn(4, 4, 4, generator=generator) for generator in seeds(1, 2, 3)])
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            v = denoiser(latents, timestep, EMBEDS)
            if guidance_scale > 1:
                without = denoiser(latents, timestep, torch.zeros_like(EMBEDS))
                v = without + guidance_scale * (v - without)
            latents = scheduler.step(v, timestep, latents).prev_sample
        expected = (vae.decode(latents / 0.7).sample / 2 + 0.5).clamp(0, 1)
    assert (pictures - expected).abs().max() <= 1e-5
    assert pictures.shape == (3, 3, 16, 16)
    assert pictures.dtype == torch.float32


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_batch_of_different_embeddings_equals_the_pictures_made_one_by_one(folder, guidance_scale):
    generator = build(folder, guidance_scale=guidance_scale)
    batch = generator(EMBEDS, generators=seeds(1, 2, 3))
    single = [generator(EMBEDS[i : i + 1], generators=seeds(i + 1)) for i in range(3)]
    assert (batch - torch.cat(single)).abs().max() <= 1e-5
    order = torch.tensor([2, 0, 1])
    shuffled = generator(EMBEDS[order], generators=seeds(3, 1, 2))
    assert (batch[order] - shuffled).abs().max() <= 1e-5
    assert torch.equal(batch, generator(EMBEDS, generators=seeds(1, 2, 3)))  # equal batches: bitwise


def test_embedding_and_noise_both_decide_the_picture(folder):
    generator = build(folder)
    picture = generator(EMBEDS[:1], generators=seeds(1))
    assert (picture - generator(EMBEDS[1:2], generators=seeds(1))).abs().max() > 0.01
    assert (picture - generator(EMBEDS[:1], generators=seeds(2))).abs().max() > 0.01


def test_frozen_and_says_what_it_takes(folder):
    generator = build(folder)
    assert generator.dim == 12
    assert generator.conditioning == {"model": "tiny", "dim": 12}
    assert not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_an_adapter_file_of_its_own(folder, tmp_path):
    moved = tmp_path / "ip-adapter_sdxl_vit-h.safetensors"
    moved.write_bytes((folder / "ip_adapter" / "ip-adapter_pocket.safetensors").read_bytes())
    generator = build(folder, ip_adapter=str(moved))
    assert generator.conditioning["model"] == "ViT-H-14"
    assert torch.equal(generator(EMBEDS, generators=seeds(1, 2, 3)), build(folder)(EMBEDS, generators=seeds(1, 2, 3)))


def test_arguments_that_cannot_be_honoured_are_rejected(folder):
    generator = build(folder)
    with pytest.raises(ConfigError, match="no text encoder"):
        generator(EMBEDS[:1], prompts=["a cat"], generators=seeds(1))
    with pytest.raises(ConfigError, match=r"captions is true.*no text encoder"):
        build(folder, captions=True)
    with pytest.raises(ConfigError, match="strength must be above 0"):
        build(folder, strength=0.0)
    with pytest.raises(DataError, match=r"image_embeds hold NaN or infinity in row 1 \(1 of 3 rows\)"):
        generator(torch.stack([EMBEDS[0], EMBEDS[1] * float("nan"), EMBEDS[2]]), generators=seeds(1, 2, 3))
    with pytest.raises(ValueError, match="one generator per picture"):
        generator(EMBEDS, generators=seeds(1))
    with pytest.raises(ValueError, match=r"\(b, 12\)"):
        generator(torch.zeros(1, 13), generators=seeds(1))
    with pytest.raises(ConfigError, match="multiple of 8"):
        build(folder, size=18)
    with pytest.raises(ConfigError, match="bfloat16"):
        build(folder, torch_dtype="int8")
    with pytest.raises(ConfigError, match="at least 1"):
        build(folder, num_inference_steps=0)


def test_missing_weights_say_what_to_do(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sdxl_files, "POCKET_DIRECTORY", tmp_path / "nowhere")
    with pytest.raises(DataError, match="make pocket-weights"):
        build("pocket")
    with pytest.raises(DataError, match=r"model_index\.json is missing"):
        build(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="hf download nobody/nothing"):
        build("nobody/nothing")
    with pytest.raises(DataError, match="is no file"):
        build(folder, ip_adapter="missing.safetensors")
    with pytest.raises(DataError, match=r"hf download nobody/nothing models/x\.safetensors"):
        build(folder, ip_adapter="nobody/nothing/models/x.safetensors")


def test_a_pipelines_own_adapter_says_what_it_was_trained_on(folder, tmp_path, monkeypatch):
    """Half a copy: without the file, embeddings of any space with the same width would be painted."""
    half = shutil.copytree(folder, tmp_path / "half")
    (half / "ip_adapter" / "conditioning.json").unlink()
    beside = half / "ip_adapter" / "conditioning.json"
    with pytest.raises(DataError) as found:
        build(half)
    assert str(found.value) == (
        f"{beside} is missing, which says what embeddings the IP-Adapter beside it was trained on; copy it again, or "
        "name the adapter in generator.args.ip_adapter."
    )
    monkeypatch.setattr(sdxl_files, "POCKET_DIRECTORY", half)
    with pytest.raises(DataError, match=r"trained on; run `make pocket-weights`, or name"):
        build("pocket")


@pytest.mark.weights
@pytest.mark.skipif(
    not (sdxl_files.POCKET_DIRECTORY / "model_index.json").is_file(), reason="no pocket SDXL: make pocket-weights"
)
def test_the_shipped_generator():
    generator = SDXLGenerator(num_inference_steps=2)
    assert (generator.dim, generator.size) == (256, 64)
    assert generator.conditioning["model"] == "pocket_clip"
    embeds = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
    batch = generator(embeds, generators=seeds(0, 0))
    assert batch.shape == (2, 3, 64, 64)
    assert (batch[0] - batch[1]).abs().max() > 0.05
    alone = generator(embeds[1:], generators=seeds(0))
    assert (batch[1:] - alone).abs().max() <= 1 / 255
