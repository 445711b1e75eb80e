"""The packaged networks and the pocket CLIP, used through open_clip's own interface."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eegrecon.artifacts import sha256_file
from eegrecon.errors import DataError
from eegrecon.models.packaged import efficientnet_lite, efficientnet_lite_file, efflite_pixels
from eegrecon.models.vision import POCKET_DIM, at_hand, load_open_clip, load_pocket_clip, pocket_heads_file
from eegrecon.pocket.drawings import concepts, render
from tests.builders_clip import build_tiny_clip


@pytest.fixture(scope="module")
def clip():
    return load_pocket_clip()


def plain(name, style="twemoji"):
    drawing = next(d for d in concepts() if d.concept == name)
    art = render(style, getattr(drawing, style), 128)
    picture = Image.new("RGB", (128, 128), (200, 200, 200))
    picture.paste(art, mask=art.getchannel("A"))
    return picture


@pytest.mark.parametrize("level", [0, 1, 2])
def test_packaged_weights_are_all_in_place(level):
    model = efficientnet_lite(level)
    packaged = torch.load(efficientnet_lite_file(level), map_location="cpu", weights_only=True)
    own = list(model.state_dict().values())
    assert len(own) == len(packaged) - 2  # the 1000-way classifier is left out
    assert all(torch.equal(a, b) for a, b in zip(own, packaged.values(), strict=False))
    assert model(efflite_pixels([plain("pizza")], 64)).shape == (1, 1280)


def test_known_pictures_are_named_by_the_imagenet_classifier():
    # An independent oracle for weights and pixels: the packaged classifier, which our trunk leaves out, names drawings.
    packaged = list(torch.load(efficientnet_lite_file(0), map_location="cpu", weights_only=True).values())
    weight, bias = packaged[-2], packaged[-1]
    model = efficientnet_lite(0)
    for name, imagenet_class in {"soccer": 805, "hammer": 587, "violin": 889, "hourglass": 604}.items():
        logits = (model(efflite_pixels([plain(name)], 224)) @ weight.T + bias)[0]
        assert imagenet_class in logits.topk(5).indices.tolist(), name


def test_interface_and_shapes(clip):
    assert (clip.dim, clip.shape) == (POCKET_DIM, (256,))
    embeds = clip.encode([plain("ladybug"), plain("anchor")])
    assert (embeds.shape, embeds.dtype) == ((2, 256), np.float32)
    assert clip.encode_texts(["a picture of an anchor"]).shape == (1, 256)
    normalised = clip.model.encode_image(clip.preprocess(plain("anchor"))[None], normalize=True)
    assert normalised.norm() == pytest.approx(1, abs=1e-5)
    assert clip.header()["weights_sha256"]


def test_preprocess_uses_the_towers_own_mean_and_std(clip):
    pixels = clip.preprocess(plain("anchor"))
    assert torch.allclose(pixels[None], efflite_pixels([plain("anchor")], 128), atol=1e-5)


def test_two_styles_of_a_concept_lie_together(clip):
    names = [d.concept for d in concepts() if d.side == "test"][:24]
    a, b = (clip.encode([plain(n, style) for n in names]) for style in ("twemoji", "openmoji"))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    hits = ((a @ b.T).argmax(1) == np.arange(24)).mean()
    assert hits > 0.3  # chance 1/24


def test_missing_and_foreign_heads(tmp_path):
    with pytest.raises(DataError, match="heads are missing"):
        load_pocket_clip(str(tmp_path / "none.safetensors"))
    tensors = load_file(pocket_heads_file())
    tensors.pop("text.proj.weight")
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="the pocket CLIP's heads are"):
        load_pocket_clip(str(tmp_path / "other.safetensors"))


def test_real_clip_without_network_says_what_to_fetch(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to the hub")

    monkeypatch.setattr("open_clip.create_model_from_pretrained", refuse)
    with pytest.raises(DataError, match=r"open_clip cannot load ViT-H-14 .*no route.*copy its cache"):
        load_open_clip()


def test_a_model_in_a_folder_is_loaded_with_its_weights(tmp_path):
    import open_clip

    name = build_tiny_clip(tmp_path / "mine")
    clip = load_open_clip(name, None)
    picture = plain("anchor")
    model, preprocess = open_clip.create_model_from_pretrained(name)
    with torch.no_grad():
        oracle = model.eval().encode_image(preprocess(picture)[None]).numpy()
    assert np.allclose(clip.encode([picture]), oracle, atol=1e-6)
    assert clip.dim == 24
    assert clip.name == "mine"
    assert clip.weights_sha256 == sha256_file(tmp_path / "mine" / "open_clip_model.safetensors")
    assert clip.weights_tag == f"open_clip_model-{clip.weights_sha256[:8]}"
    assert load_open_clip(name, None, weights_tag="own").weights_tag == "own"
    (tmp_path / "mine" / "open_clip_model.safetensors").unlink()
    with pytest.raises(DataError, match="open_clip cannot load local-dir:"):  # never random weights in silence
        load_open_clip(name, None)


def test_at_hand_looks_and_does_not_fetch(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    assert not at_hand("ViT-H-14", "laion2b_s32b_b79k")
    assert not at_hand("ViT-L-14", "openai")
    assert not at_hand("no such model", "tag")
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: asked.append(a) or "/cache/file")
    assert at_hand("ViT-H-14", "laion2b_s32b_b79k")
    assert asked[0] == ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "open_clip_model.safetensors")
    assert at_hand(f"local-dir:{tmp_path}", "")
