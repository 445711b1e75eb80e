"""The shipped pocket SDXL reads captions: it answers one as it answers the embedding of what it names."""

import pytest
import torch

from eegrecon.data.splits import held_out_concepts
from eegrecon.models.generators.sdxl import SDXLGenerator
from eegrecon.models.vision import load_pocket_clip
from eegrecon.pocket.drawings import concepts
from eegrecon.pocket.pictures import picture

pytestmark = pytest.mark.weights
N = 12


@pytest.fixture(scope="module")
def generator():
    return SDXLGenerator(num_inference_steps=2, guidance_scale=1.0, captions=True)


@torch.no_grad()
def answer(generator, image_embeds, prompt):
    """What the UNet makes of pure noise; prompt: captions, None for the empty one, or "" for none at all (zeros)."""
    n = len(image_embeds)
    noise = torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    given = generator.prompt_embeds(n, prompt or None)
    tokens, pooled = given["prompt_embeds"], given["pooled_prompt_embeds"]
    if prompt == "":
        tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]]).expand(n, -1)
    more = {"text_embeds": pooled, "time_ids": sizes, "image_embeds": [image_embeds[:, None]]}
    return generator.unet(noise, 900, encoder_hidden_states=tokens, added_cond_kwargs=more).sample


@pytest.fixture(scope="module")
def drawings():
    """Drawings it was trained on."""
    train = [drawing for drawing in concepts() if drawing.side == "train"]
    held = set(held_out_concepts(len(train), 60, 0))
    return [drawing for number, drawing in enumerate(train) if number not in held][::40][:N]


@pytest.fixture(scope="module")
def embeds(drawings):
    shown = [picture(drawing, number, size=128, seed=0) for drawing in drawings for number in range(4)]
    return torch.from_numpy(load_pocket_clip().encode(shown)).reshape(N, 4, -1).mean(1)


def difference(first, second):
    return float((first - second).pow(2).mean())


def test_a_caption_does_what_the_embedding_of_its_drawing_does(generator, drawings, embeds):
    captions, blank = [f"a picture of {drawing.title}" for drawing in drawings], torch.zeros_like(embeds)
    wanted = answer(generator, embeds, None)
    right, wrong, none = (
        difference(answer(generator, blank, said), wanted) for said in (captions, [*captions[1:], captions[0]], None)
    )
    assert right < 0.7 * none
    assert none < wrong


def test_the_empty_prompt_changes_next_to_nothing(generator, embeds):
    """Captions are off by default: the empty prompt is to be read as no prompt at all."""
    without = answer(generator, embeds, "")
    meant = difference(without, answer(generator, torch.zeros_like(embeds), ""))  # what the embeddings do
    assert difference(without, answer(generator, embeds, None)) < 0.02 * meant
