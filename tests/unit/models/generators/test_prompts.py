"""Captions and the empty prompt, on tiny pipelines with real text encoders and tokenizers."""

import weakref

import pytest
import torch

from eegrecon.errors import ConfigError, DataError
from eegrecon.models.generators import sdxl_files
from eegrecon.models.generators.sdxl import SDXLGenerator
from tests.builders_sdxl_published import adapter_of, tiny_published

EMBEDS = torch.randn(3, 1024, generator=torch.Generator().manual_seed(0))
WORDS = ["a cat", "a cat", "a red car"]


@pytest.fixture(scope="module", params=["both", "second"])
def folder(request, tmp_path_factory):
    return tiny_published(tmp_path_factory.mktemp(request.param) / "sdxl-turbo", encoders=request.param)


def build(folder, **args):
    args = {"num_inference_steps": 2, "guidance_scale": 0.0, "size": 16, **args}
    return SDXLGenerator(base=str(folder), ip_adapter=str(adapter_of(folder)), **args)


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def bare(folder, prompts, guidance_scale):
    """diffusers itself, one picture at a time."""
    from diffusers import StableDiffusionXLPipeline

    with sdxl_files.quiet_diffusers():
        pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
        adapter = adapter_of(folder)
        pipe.load_ip_adapter(str(adapter.parent), "", adapter.name, image_encoder_folder=None)
    pipe.set_progress_bar_config(disable=True)
    made = []
    for row, (prompt, generator) in enumerate(zip(prompts, seeds(1, 2, 3), strict=True)):
        embeds = EMBEDS[row : row + 1, None]
        embeds = torch.cat([torch.zeros_like(embeds), embeds]) if guidance_scale > 1 else embeds
        made += [
            pipe(
                prompt,
                ip_adapter_image_embeds=[embeds],
                height=16,
                width=16,
                num_inference_steps=2,
                guidance_scale=guidance_scale,
                generator=generator,
                output_type="pt",
            ).images
        ]
    return torch.cat(made)


@pytest.mark.parametrize("guidance_scale", [0.0, 3.0])
def test_equals_diffusers_with_and_without_captions(folder, guidance_scale):
    plain = build(folder, guidance_scale=guidance_scale)(EMBEDS, generators=seeds(1, 2, 3))
    assert (plain - bare(folder, [""] * 3, guidance_scale)).abs().max() <= 1e-3  # a quarter of a byte
    generator = build(folder, guidance_scale=guidance_scale, captions=True)
    told = generator(EMBEDS, prompts=WORDS, generators=seeds(1, 2, 3))
    assert (told - bare(folder, WORDS, guidance_scale)).abs().max() <= 1e-3  # a quarter of a byte
    assert (told - plain).abs().max() > 0.01
    assert torch.equal(generator(EMBEDS, generators=seeds(1, 2, 3)), plain)


def test_strength_is_a_line_between_the_empty_prompt_and_the_caption(folder):
    parts = [build(folder, captions=True, prompt_strength=strength) for strength in (0.0, 0.25, 1.0)]
    empty, quarter, full = (generator.prompt_embeds(3, WORDS) for generator in parts)
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        assert torch.equal(empty[name], parts[0].prompt_embeds(3, None)[name])
        assert torch.allclose(quarter[name], empty[name] + 0.25 * (full[name] - empty[name]), atol=1e-5)
        assert torch.equal(full[name][0], full[name][1])
        assert not torch.equal(full[name][0], full[name][2])
    for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):  # SDXL's setting force_zeros_for_...
        assert not full[name].any()
    generators = [one(EMBEDS, prompts=WORDS, generators=seeds(1, 2, 3)) for one in parts]
    assert torch.equal(generators[0], parts[0](EMBEDS, generators=seeds(1, 2, 3)))
    assert not torch.equal(generators[1], generators[2])


def test_text_encoders_are_released_unless_captions_come(folder, monkeypatch):
    found, load = [], sdxl_files.load_pipeline

    def watched(*args):
        pipe = load(*args)
        found.append(weakref.ref(pipe.text_encoder_2))
        return pipe

    monkeypatch.setattr(sdxl_files, "load_pipeline", watched)
    released, kept = build(folder), build(folder, captions=True)
    assert [reference() is None for reference in found] == [True, False]
    assert not any("text" in name for name, _ in released.named_parameters())
    assert any("text_encoders" in name for name, _ in kept.named_parameters())
    with pytest.raises(ConfigError, match=r"generator\.args\.captions=true"):
        released(EMBEDS, prompts=WORDS, generators=seeds(1, 2, 3))
    with pytest.raises(ConfigError, match=r"generator\.args\.captions=true"):
        released.check(captions=True)
    kept.check(captions=True)


def test_each_picture_has_its_caption(folder):
    generator = build(folder, captions=True)
    for wrong in (WORDS[:2], "cat", [1, 2, 3]):
        with pytest.raises(ValueError, match="one prompt per picture"):
            generator(EMBEDS, prompts=wrong, generators=seeds(1, 2, 3))
    batch = generator(EMBEDS, prompts=WORDS, generators=seeds(1, 2, 3))
    alone = generator(EMBEDS[1:2], prompts=WORDS[1:2], generators=seeds(2))
    assert (batch[1:2] - alone).abs().max() <= 1e-5
    latents = torch.randn(3, 4, 4, 4)
    told = generator(EMBEDS, prompts=WORDS, latents=latents, generators=seeds(1, 2, 3))
    assert (told - generator(EMBEDS, latents=latents, generators=seeds(1, 2, 3))).abs().max() > 0.01


def test_text_encoders_of_another_pipeline_are_refused(tmp_path):
    import json

    folder = tiny_published(tmp_path / "sdxl-turbo")
    index = json.loads((folder / "model_index.json").read_text())
    for part, message in (("text_encoder", "belong to another pipeline"), ("tokenizer", "but no tokenizer")):
        (folder / "model_index.json").write_text(json.dumps({**index, part: [None, None]}))
        with pytest.raises(DataError, match=message):
            build(folder)
