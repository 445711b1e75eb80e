"""Starting from latents: noised by the scheduler, compared with loops written by hand."""

import pytest
import torch

from eegrecon.errors import ConfigError, DataError
from eegrecon.models.generators.pocket_sdxl import build_scheduler
from eegrecon.models.generators.sdxl import SDXLGenerator
from tests.builders_sdxl import tiny_denoiser, tiny_sdxl, tiny_vae
from tests.builders_sdxl_published import adapter_of, scheduler_of, tiny_published

EMBEDS = 2 * torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
LATENTS = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


def build(folder, **args):
    return SDXLGenerator(**{"base": str(folder), "num_inference_steps": 5, "guidance_scale": 2.0, "size": 16, **args})


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
@pytest.mark.parametrize("strength", [0.2, 0.8])
def test_equals_noising_and_denoising_by_hand(folder, guidance_scale, strength):
    generator = build(folder, guidance_scale=guidance_scale, strength=strength)
    pictures = generator(EMBEDS, latents=LATENTS, generators=seeds(1, 2, 3))
    denoiser, vae, scheduler = tiny_denoiser(), tiny_vae(), build_scheduler()
    scheduler.set_timesteps(5)
    timesteps = scheduler.timesteps[5 - int(5 * strength) :]
    noise = torch.stack([torch.randn(4, 4, 4, generator=generator) for generator in seeds(1, 2, 3)])
    # the latents go in as they are: scaled, neither encoded nor scaled again
    alpha = scheduler.alphas_cumprod[timesteps[0]]
    latents = alpha.sqrt() * LATENTS + (1 - alpha).sqrt() * noise
    assert torch.allclose(latents, scheduler.add_noise(LATENTS, noise, timesteps[:1].repeat(3)))
    with torch.no_grad():
        for timestep in timesteps:
            v = denoiser(latents, timestep, EMBEDS)
            if guidance_scale > 1:
                without = denoiser(latents, timestep, torch.zeros_like(EMBEDS))
                v = without + guidance_scale * (v - without)
            latents = scheduler.step(v, timestep, latents).prev_sample
        expected = (vae.decode(latents / 0.7).sample / 2 + 0.5).clamp(0, 1)
    assert (pictures - expected).abs().max() <= 1e-5


def test_turbo_noises_as_its_scheduler_does(tmp_path):
    """Ancestral Euler, whose noise is sigma-scaled: the published code adds noise of one size at every strength."""
    folder = tiny_published(tmp_path / "sdxl-turbo")
    args = {"base": str(folder), "ip_adapter": str(adapter_of(folder)), "num_inference_steps": 4, "size": 16}
    generator = SDXLGenerator(**args, guidance_scale=0.0, strength=0.5)
    embeds = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))
    seen = []
    generator.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    generator(embeds, latents=LATENTS[:2], generators=seeds(1, 2))
    scheduler = scheduler_of("turbo")
    scheduler.set_timesteps(4)
    assert [float(timestep) for _, timestep in seen] == scheduler.timesteps[2:].tolist()
    sigma = scheduler.sigmas[2]
    noise = torch.stack([torch.randn(4, 4, 4, generator=generator) for generator in seeds(1, 2)])
    assert torch.allclose(seen[0][0], (LATENTS[:2] + sigma * noise) / (sigma**2 + 1).sqrt(), atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_a_batch_equals_the_pictures_made_one_by_one(folder, guidance_scale):
    generator = build(folder, guidance_scale=guidance_scale)
    batch = generator(EMBEDS, latents=LATENTS, generators=seeds(1, 2, 3))
    single = [generator(EMBEDS[i : i + 1], latents=LATENTS[i : i + 1], generators=seeds(i + 1)) for i in range(3)]
    assert (batch - torch.cat(single)).abs().max() <= 1e-5
    assert torch.equal(batch, generator(EMBEDS, latents=LATENTS, generators=seeds(1, 2, 3)))


def test_strength_goes_from_the_latents_to_noise(folder):
    low, high = build(folder, strength=0.2), build(folder, strength=1.0)
    first, second = LATENTS, LATENTS.flip(0)
    for generator, differ in ((low, True), (high, False)):
        pictures = [generator(EMBEDS, latents=latents, generators=seeds(1, 2, 3)) for latents in (first, second)]
        assert torch.equal(*pictures) is not differ
    assert torch.equal(pictures[0], high(EMBEDS, generators=seeds(1, 2, 3)))
    # a call with latents leaves nothing behind for one without
    before = low(EMBEDS, generators=seeds(1, 2, 3))
    low(EMBEDS, latents=first, generators=seeds(1, 2, 3))
    assert torch.equal(before, low(EMBEDS, generators=seeds(1, 2, 3)))


def test_latents_that_cannot_be_a_start_are_refused(folder):
    generator = build(folder)
    for wrong in (torch.zeros(3, 4, 8, 8), torch.zeros(2, 4, 4, 4), torch.zeros(3, 16, 4, 4), torch.zeros(3, 64)):
        with pytest.raises(ValueError, match=r"latents must be \(b, 4, 4, 4\) for pictures of 16 px"):
            generator(EMBEDS, latents=wrong, generators=seeds(1, 2, 3))
    broken = LATENTS.clone()
    broken[2, 0, 0, 0] = float("inf")
    with pytest.raises(DataError, match="latents hold NaN or infinity in row 2"):
        generator(EMBEDS, latents=broken, generators=seeds(1, 2, 3))
    short = build(folder, num_inference_steps=4, strength=0.2)
    short(EMBEDS, generators=seeds(1, 2, 3))
    short.check()
    with pytest.raises(ConfigError, match=r"strength 0\.2 of 4 steps leaves no step"):
        short.check(latents=True)
    with pytest.raises(ConfigError, match=r"strength x num_inference_steps must be at least 1"):
        short(EMBEDS, latents=LATENTS, generators=seeds(1, 2, 3))
