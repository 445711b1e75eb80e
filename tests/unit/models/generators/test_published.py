"""Published checkpoints by configuration alone, on tiny random ones in the same folders, files and keys."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eegrecon.config import GENERATORS, Choice
from eegrecon.errors import DataError
from eegrecon.models.generators.conditioning import mismatches
from eegrecon.models.generators.latents import load_vae
from eegrecon.registry import resolve
from tests.builders_sdxl_published import adapter_of, tiny_published, write_tokenizer

KINDS = {"turbo": (4, 0.0), "base": (6, 5.0)}  # steps and guidance
SPACES = {1024: ("ViT-H-14", "laion2b_s32b_b79k"), 1280: ("ViT-bigG-14", "laion2b_s39b_b160k")}


def build(folder, dim=1024, **args):
    args = {"base": str(folder), "ip_adapter": "", "size": 16, **args}
    args["ip_adapter"] = args["ip_adapter"] or str(adapter_of(folder, dim))
    return resolve(GENERATORS, Choice("sdxl", args))


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    return tiny_published(tmp_path_factory.mktemp("published") / "sdxl-turbo")


@pytest.fixture
def copy(turbo, tmp_path):
    """A folder to be damaged."""
    shutil.copytree(turbo.parent / "sdxl_models", tmp_path / "sdxl_models")
    return shutil.copytree(turbo, tmp_path / "sdxl-turbo")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", SPACES)
@pytest.mark.parametrize("torch_dtype", ["float32", "bfloat16"])
def test_every_base_with_every_adapter(tmp_path, kind, dim, torch_dtype):
    steps, guidance_scale = KINDS[kind]
    folder = tiny_published(tmp_path / kind, kind, dim)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "torch_dtype": torch_dtype}
    generator = build(folder, dim, **settings)
    assert (generator.dim, generator.conditioning["dim"]) == (dim, dim)
    assert (generator.conditioning["model"], generator.conditioning["weights_tag"]) == SPACES[dim]
    keys = load_file(adapter_of(folder, dim))
    assert {"image_proj.proj.weight", "image_proj.norm.bias", "ip_adapter.1.to_k_ip.weight"} <= set(keys)
    embeds = torch.randn(3, dim, generator=torch.Generator().manual_seed(0))
    batch = generator(embeds, generators=seeds(1, 2, 3))
    alone = torch.cat([generator(embeds[i : i + 1], generators=seeds(i + 1)) for i in range(3)])
    assert batch.isfinite().all()
    assert (batch[0] - batch[1]).abs().max() > 0.01
    if torch_dtype == "float32":
        assert (batch - alone).abs().max() <= 1 / 255
    # an embedding of the other adapter's model is refused before anything is made
    other = {"model": SPACES[dim][0], "weights_tag": SPACES[dim][1], "dim": dim, "normalised": True}
    assert mismatches(generator, other) == ["normalised is False in the generator and True in the target"]
    wrong = 2304 - dim
    assert f"dim is {dim} in the generator and {wrong} in the target" in mismatches(
        generator, {"model": SPACES[wrong][0], "weights_tag": SPACES[wrong][1], "dim": wrong, "normalised": False}
    )
    with pytest.raises(ValueError, match=rf"\(b, {dim}\)"):
        generator(torch.zeros(1, wrong), generators=seeds(1))


FILES = [
    "unet/diffusion_pytorch_model.safetensors", "unet/config.json", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors", "text_encoder_2/model.safetensors", "text_encoder_2/config.json",
    "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer_config.json", "scheduler/scheduler_config.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_command_that_fetches_it(copy, name):
    (copy / name).unlink()
    with pytest.raises(DataError) as error:
        build(copy)
    wanted = f"{copy / name} is missing; fetch it with `hf download stabilityai/sdxl-turbo {name} --local-dir {copy}`."
    assert str(error.value) == wanted


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
def test_a_file_that_was_cut_short_is_named(copy, name):
    whole = (copy / name).read_bytes()
    for part in (whole[:-1], whole[:100], b"version https://git-lfs.github.com/spec/v1\n"):
        (copy / name).write_bytes(part)
        with pytest.raises(DataError, match=rf"{name} is cut short or no such file .*hf download stabilityai"):
            build(copy)


def test_a_tokenizer_that_is_cut_short_is_named(copy):
    words = copy / "tokenizer_2" / "tokenizer.json"
    words.write_bytes(words.read_bytes()[:-100])
    says = (
        r"tokenizer_2/tokenizer\.json is cut short .*`hf download stabilityai/sdxl-turbo tokenizer_2/tokenizer\.json "
    )
    with pytest.raises(DataError, match=says):
        build(copy)


def test_a_tokenizers_words_are_asked_for_as_they_were_saved(copy):
    """Published CLIP tokenizers are two files, today's transformers (and the pocket pipeline) write one."""
    folder = copy / "tokenizer"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        DataError, match=r"tokenizer/tokenizer\.json is missing; fetch it with `hf download stabilityai"
    ):
        build(copy)
    says = json.loads((folder / "tokenizer_config.json").read_text())
    del says["backend"]
    (folder / "tokenizer_config.json").write_text(json.dumps(says))
    with pytest.raises(DataError, match=r"tokenizer/vocab\.json is missing"):
        build(copy)
    write_tokenizer(copy.parent / "words", "!")
    shutil.copy(copy.parent / "words" / "vocab.json", folder)
    with pytest.raises(DataError, match=r"tokenizer/merges\.txt is missing"):
        build(copy)
    shutil.copy(copy.parent / "words" / "merges.txt", folder)
    build(copy)


@pytest.mark.parametrize("text", ['{"model": "ViT-H', "", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_conditioning_is_named(copy, text):
    beside = adapter_of(copy).parent / "conditioning.json"
    beside.write_text(text)
    with pytest.raises(
        DataError, match=rf"^{re.escape(str(beside))} is cut short or no such file \(.*\); copy it again\.$"
    ):
        build(copy)
    beside.write_text("[1024]")
    with pytest.raises(DataError, match=r"conditioning\.json holds a list, expected an object such as \{\"model\": "):
        build(copy)


def test_an_adapter_that_nobody_knows_is_said(copy, capsys):
    build(copy)
    assert capsys.readouterr().err == ""
    mine = adapter_of(copy).rename(adapter_of(copy).with_name("mine.safetensors"))
    assert build(copy, ip_adapter=str(mine)).conditioning == {}
    assert capsys.readouterr().err == (
        f"eegrecon: nothing says what embeddings the IP-Adapter {mine} was trained on, so only their width is checked: "
        'put {"model": "ViT-H-14", "weights_tag": "laion2b_s32b_b79k", "dim": 1024, "normalised": false} into '
        f"{mine.with_name('conditioning.json')}\n"
    )


def test_other_pipelines(copy):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(DataError, match="holds a StableDiffusionPipeline, expected a StableDiffusionXLPipeline"):
        build(copy)


def test_the_half_size_variant(copy):
    with pytest.raises(DataError, match=r"text_encoder/model\.fp16\.safetensors is missing"):
        build(copy, variant="fp16")
    for path in sorted(copy.rglob("*.safetensors")):
        half = {name: value.half() for name, value in load_file(path).items()}
        save_file(half, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"})
        path.unlink()
    generator = build(copy, variant="fp16", torch_dtype="float16", num_inference_steps=2)
    assert (generator.unet.dtype, generator.vae.dtype) == (torch.float16, torch.float32)
    assert generator(torch.randn(1, 1024), generators=seeds(1)).isfinite().all()


def test_weights_in_shards(copy):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    path.unlink()
    names = [f"diffusion_pytorch_model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    places = {key: names[number % 2] for number, key in enumerate(sorted(state))}
    for name in names:
        save_file({key: state[key] for key, place in places.items() if place == name}, path.with_name(name))
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    build(copy)
    listed = path.with_name(f"{path.name}.index.json")
    listed.write_text(json.dumps(index)[:-9])
    with pytest.raises(DataError, match=rf"{listed.name} is cut short"):
        build(copy)
    listed.write_text(json.dumps(index))
    path.with_name(names[1]).unlink()
    with pytest.raises(DataError, match=rf"unet/{names[1]} is missing"):
        build(copy)


def test_a_fetched_repository(copy, monkeypatch):
    def snapshot(repository, local_files_only):
        assert local_files_only
        return str(copy)

    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: asked.append(a) or str(adapter_of(copy)))
    published = "h94/IP-Adapter/sdxl_models/ip-adapter_sdxl_vit-h.safetensors"
    generator = build("stabilityai/sdxl-turbo", ip_adapter=published)
    assert generator.conditioning["model"] == "ViT-H-14"
    assert asked == [("h94/IP-Adapter", "sdxl_models/ip-adapter_sdxl_vit-h.safetensors")]
    (copy / FILES[0]).unlink()
    with pytest.raises(DataError, match=rf"fetch it with `hf download stabilityai/sdxl-turbo {FILES[0]}`\.$"):
        build("stabilityai/sdxl-turbo", ip_adapter=published)


def test_adapters_that_do_not_fit(turbo, tmp_path):
    state = load_file(adapter_of(turbo))
    plus = {key: value for key, value in state.items() if not key.startswith("image_proj")}
    plus |= {"image_proj.latents": torch.zeros(1, 16, 8)}
    save_file(plus, tmp_path / "ip-adapter-plus_sdxl_vit-h.safetensors")
    with pytest.raises(DataError, match=r"does not take one embedding a picture .*not a plus or faceid variant"):
        build(turbo, ip_adapter=str(tmp_path / "ip-adapter-plus_sdxl_vit-h.safetensors"))
    narrow = {key: value[:, :5].contiguous() if "_ip" in key else value for key, value in state.items()}
    save_file(narrow, tmp_path / "ip-adapter_sd15.safetensors")
    with pytest.raises(DataError, match="does not belong to this UNet"):
        build(turbo, ip_adapter=str(tmp_path / "ip-adapter_sd15.safetensors"))
    cut = tmp_path / "ip-adapter_sdxl.safetensors"
    cut.write_bytes(adapter_of(turbo).read_bytes()[:-8])
    with pytest.raises(DataError, match="is cut short"):
        build(turbo, ip_adapter=str(cut))
    (tmp_path / "ip-adapter_sdxl_vit-h.bin").touch()
    with pytest.raises(DataError, match=r"name a local \.safetensors file .*\.bin files hold the same"):
        build(turbo, ip_adapter=str(tmp_path / "ip-adapter_sdxl_vit-h.bin"))


def test_latents_of_the_store_are_what_the_generator_starts_from(turbo):
    generator, made = build(turbo), load_vae(str(turbo), size=16)
    assert generator.latent_shape == made.shape
    # what the generator starts from is what `extract-targets` wrote: encode, decode, the same picture
    rng = np.random.default_rng(0)
    latents = torch.from_numpy(made.encode([Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))]))
    with torch.no_grad():
        direct = generator.vae.decode(latents / generator.scaling_factor).sample
    assert torch.allclose(generator._decode(latents), (direct / 2 + 0.5).clamp(0, 1), atol=1e-6)
