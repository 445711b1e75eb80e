import torch
from torch import nn

from eegrecon.modules.generator import GeneratorModule


class Noise(nn.Module):
    """Draws a picture's noise from its generator and keeps the weights it must not train."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image_embeds, *, latents=None, prompts=None, generators):
        noise = [torch.rand(3, 2, 2, generator=generator) for generator in generators]
        return torch.stack(noise) * 0.5 + image_embeds[:, :1, None, None] * 0.1


def batch(*rows):
    index, draw = zip(*rows, strict=True)
    return {
        "image_embeds": torch.tensor(index, dtype=torch.float32)[:, None] / 10,
        "image_index": torch.tensor(index),
        "draw": torch.tensor(draw),
    }


def test_a_picture_depends_on_seed_image_and_draw_alone():
    module = GeneratorModule(Noise(), seed=3)
    together = module.predict_step(batch((5, 0), (2, 0), (5, 1)), 0)
    alone = module.predict_step(batch((2, 0)), 7, dataloader_idx=1)
    assert torch.equal(together["pictures"][1], alone["pictures"][0])
    assert not torch.equal(together["pictures"][0], together["pictures"][2])
    other_seed = GeneratorModule(Noise(), seed=4).predict_step(batch((2, 0)), 0)
    assert not torch.equal(other_seed["pictures"], alone["pictures"])
    assert together["image_index"].tolist() == [5, 2, 5]
    assert together["draw"].tolist() == [0, 0, 1]


def test_nothing_is_trained():
    module = GeneratorModule(Noise(), seed=0)
    assert not any(parameter.requires_grad for parameter in module.parameters())


class Echo(nn.Module):
    """Shows what it was given."""

    def forward(self, image_embeds, *, latents=None, prompts=None, generators):
        self.given = (latents, prompts)
        return torch.zeros(len(image_embeds), 3, 2, 2)


def test_latents_and_words_reach_the_generator():
    echo = Echo()
    module = GeneratorModule(echo, seed=0, words=["a cat", "a dog"])
    latents = torch.randn(2, 4, 2, 2)
    module.predict_step({**batch((1, 0), (2, 0)), "latents": latents, "caption": torch.tensor([1, 0])}, 0)
    assert torch.equal(echo.given[0], latents)
    assert echo.given[1] == ["a dog", "a cat"]
    module.predict_step(batch((1, 0)), 0)
    assert echo.given == (None, None)
