"""Intermediate layers against the tower run by hand and against open_clip's own function for them."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from eegrecon.errors import ConfigError
from eegrecon.models.vision import load_open_clip, load_pocket_clip
from eegrecon.models.vision_layers import VisionLayer
from tests.builders_clip import build_tiny_clip

PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 256, size=(50, 40, 3), dtype=np.uint8)) for i in range(3)
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_open_clip(build_tiny_clip(tmp_path_factory.mktemp("clip")), None)


@pytest.fixture(scope="module")
def pocket():
    return load_pocket_clip()


def pixels(clip):
    return torch.stack([clip.preprocess(picture) for picture in PICTURES])


def by_hand(clip, count):
    """Tokens after `count` blocks, (n, 1 + patches, width), through the tower's parts one after the other."""
    tower = clip.model.visual
    with torch.no_grad():
        tokens = tower.conv1(pixels(clip)).flatten(2).transpose(1, 2)
        tokens = torch.cat([tower.class_embedding.expand(len(tokens), 1, -1), tokens], dim=1)
        tokens = tower.ln_pre(tokens + tower.positional_embedding)
        for block in list(tower.transformer.resblocks)[:count]:
            tokens = block(tokens)
    return tokens.numpy()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_number_is_the_residual_stream_after_so_many_blocks(clip, count):
    tokens = by_hand(clip, count)
    for pooling, oracle in {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1), "tokens": tokens}.items():
        layer = VisionLayer(clip, str(count), pooling)
        assert layer.shape == oracle.shape[1:]
        assert layer.dim == oracle[0].size
        found = layer.encode(PICTURES)
        assert found.dtype == np.float32
        assert np.abs(found - oracle).max() < 1e-5
    if count:  # open_clip's own function counts from 0 and leaves the class token out
        theirs = clip.model.visual.forward_intermediates(
            pixels(clip), indices=[count - 1], intermediates_only=True, output_fmt="NLC"
        )["image_intermediates"][0]
        assert (
            np.abs(VisionLayer(clip, str(count), "tokens").encode(PICTURES)[:, 1:] - theirs.detach().numpy()).max()
            < 1e-5
        )


def test_the_last_layer_leads_to_the_embedding(clip):
    tower = clip.model.visual
    last = torch.from_numpy(VisionLayer(clip, "3", "cls").encode(PICTURES))
    with torch.no_grad():
        assert np.abs((tower.ln_post(last) @ tower.proj).numpy() - clip.encode(PICTURES)).max() < 1e-5


def test_what_lies_behind_the_layer_is_not_computed(clip):
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, k=k: ran.append(k + 1))
        for k, block in enumerate(clip.model.visual.transformer.resblocks)
    ]
    layer = VisionLayer(clip, "2", "mean")
    ran.clear()
    layer.encode(PICTURES)
    for handle in handles:
        handle.remove()
    assert ran == [1, 2]
    assert clip.encode(PICTURES).shape == (3, 24)  # and the hook of the layer is gone again
    assert not clip.model.visual.transformer.resblocks[1]._forward_hooks


def test_a_tower_that_runs_tokens_first_gives_the_same(clip):
    tower = clip.model.visual
    old = open_clip.transformer.Transformer(48, 3, 3, batch_first=False)
    old.load_state_dict(tower.transformer.state_dict())
    wanted = {name: VisionLayer(clip, name, "mean").encode(PICTURES) for name in ("0", "2", "transformer.resblocks.1")}
    try:
        new, tower.transformer = tower.transformer, old.eval()
        for name, oracle in wanted.items():
            found = VisionLayer(clip, name, "mean").encode(PICTURES)
            # Values reach 20, where float32 has steps of 2e-6: the error of some sums is a few of them.
            assert np.abs(found - oracle).max() < 1e-5 * np.abs(oracle).max()
    finally:
        tower.transformer = new


def test_modules_by_name(clip):
    assert np.array_equal(
        VisionLayer(clip, "transformer.resblocks.1", "cls").encode(PICTURES),
        VisionLayer(clip, "2", "cls").encode(PICTURES),
    )
    normed = clip.model.visual.ln_post(torch.from_numpy(by_hand(clip, 3))).detach().numpy()
    assert np.abs(VisionLayer(clip, "ln_post", "tokens").encode(PICTURES) - normed).max() < 1e-5


def test_a_convolutional_tower(pocket):
    trunk = pocket.model.visual.trunk
    with torch.no_grad():
        maps = trunk.bn1(trunk.conv_stem(pixels(pocket)))
        for block in list(trunk.blocks)[:4]:
            maps = block(maps)
    layer = VisionLayer(pocket, "4", "mean")
    assert np.abs(layer.encode(PICTURES) - maps.mean((2, 3)).numpy()).max() < 1e-4
    tokens = VisionLayer(pocket, "4", "tokens").encode(PICTURES)
    assert np.abs(tokens - maps.flatten(2).transpose(1, 2).numpy()).max() < 1e-4
    with pytest.raises(ConfigError, match=r"the layer '4' of pocket_clip has no class token"):
        VisionLayer(pocket, "4", "cls")
    assert "4 of 7 vision blocks (trunk.blocks), mean" in layer.header()["layer"]


def test_header_and_refusals(clip):
    header = VisionLayer(clip, "2", "cls").header()
    assert header["layer"] == "residual stream after 2 of 3 vision blocks (transformer.resblocks), class token"
    assert (header["model"], header["dim"], header["scaling_factor"]) == (clip.name, 48, None)
    for name in ("4", "-1"):
        with pytest.raises(ConfigError, match=r"no layer .* it has 3 blocks, so a number from 0 to 3"):
            VisionLayer(clip, name, "mean")
    with pytest.raises(ConfigError, match=r"no layer 'ln_pst'.*\(0 to 3\).*ln_post"):
        VisionLayer(clip, "ln_pst", "mean")
