"""The pocket SDXL's text side: whole words as tokens, meanings to start from, and the real pipeline's own encoding."""

import pytest
import torch

from eegrecon.models.generators.pocket_sdxl import PocketDenoiser, build_unet, save_pocket_sdxl
from eegrecon.models.generators.pocket_text import (
    TEMPLATE,
    build_text_encoder,
    build_tokenizer,
    caption_words,
    tokenize,
    word_table,
)
from tests.builders_sdxl import tiny_vae

WORDS = sorted({"a", "picture", "of", "red", "boat", "ferris", "wheel", "boats"})


def embed(texts):
    """Letter counts: boat and boats are near, boat and wheel are not."""
    return torch.tensor([[text.count(letter) for letter in "abcdefghiklmnoprstuw"] for text in texts]).float()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORDS)


def test_the_vocabulary_is_the_titles_and_their_neighbours():
    words = caption_words(
        ["Red boat", "ferris wheel"], embed, ["boats", "zzyzx", "##oat", "Boat", "of", "xyz1"], extra=1
    )
    assert words == sorted({"a", "picture", "of", "red", "boat", "ferris", "wheel", "boats"})


def test_every_word_is_one_token_and_anything_can_be_written(tokenizer):
    assert tokenizer.tokenize("A picture of Ferris-wheel") == [
        "a</w>", "picture</w>", "of</w>", "ferris</w>", "-</w>", "wheel</w>"]  # fmt: skip
    vocab = tokenizer.get_vocab()
    assert tokenizer.unk_token_id not in tokenizer("é 漢 7 zebra", add_special_tokens=False).input_ids
    ids = tokenize(tokenizer, ["", "a picture of " + "red " * 30])
    assert ids.shape == (2, 16)
    begin, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    assert ids[0].tolist() == [begin] + [end] * 15
    assert ids[1, -1] == end  # truncated, and still ended


def test_words_start_where_they_mean_something_and_stay_there(tokenizer):
    table = word_table(tokenizer, WORDS, embed, width=4)
    vocab = tokenizer.get_vocab()
    assert table.shape == (len(vocab), 4)
    assert table[vocab["z"]].abs().sum() == 0
    boat, boats, wheel = (table[vocab[f"{word}</w>"]] for word in ("boat", "boats", "wheel"))
    assert (boat - boats).norm() < (boat - wheel).norm()
    encoder = build_text_encoder(tokenizer, width=4, pooled_dim=3, table=table)
    words = encoder.get_input_embeddings().weight
    assert torch.equal(words[vocab["boat</w>"]], boat)
    assert not words.requires_grad
    assert sum(p.requires_grad for p in encoder.parameters()) == len(list(encoder.parameters())) - 1
    assert build_text_encoder(tokenizer, width=4).get_input_embeddings().weight.requires_grad


@pytest.fixture(scope="module")
def denoiser(tokenizer):
    torch.manual_seed(0)
    unet = build_unet(sample_size=4, block_out_channels=(8, 16), cross_attention_dim=8, pooled_dim=4, head_dim=8,
                      norm_num_groups=4)  # fmt: skip
    text = build_text_encoder(tokenizer, width=8, pooled_dim=4, table=word_table(tokenizer, WORDS, embed, width=8))
    return PocketDenoiser(unet, dim=12, size=16, text_encoder=text).eval()


def test_training_encodes_captions_as_the_pipeline_does(denoiser, tokenizer, tmp_path):
    """The refiner's layout, saved and loaded: `StableDiffusionXLPipeline.encode_prompt` gives what training saw."""
    from diffusers import StableDiffusionXLPipeline

    save_pocket_sdxl(tmp_path, denoiser, tiny_vae(), torch.float32, tokenizer=tokenizer)
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path, add_watermarker=False)
    assert pipe.text_encoder is None
    texts = ["a picture of red boat", ""]
    with torch.no_grad():
        found = pipe.encode_prompt(texts, do_classifier_free_guidance=True, device="cpu")
        tokens, pooled = denoiser.encode_text(tokenize(tokenizer, texts))
    assert torch.allclose(found[0], tokens, atol=1e-6)
    assert torch.allclose(found[2], pooled, atol=1e-6)
    assert found[1].abs().sum() == found[3].abs().sum() == 0  # the negative is zeros, what a dropped row sees


def test_words_reach_the_picture_and_dropping_takes_all_away(denoiser, tokenizer):
    noisy, embeds, timesteps = torch.randn(2, 4, 4, 4), torch.randn(2, 12), torch.tensor([500, 500])
    ids = tokenize(tokenizer, [TEMPLATE.format("red boat"), TEMPLATE.format("wheel")])
    with torch.no_grad():
        prompt = denoiser.encode_text(ids)
        out = denoiser(noisy, timesteps, embeds, prompt)
        assert (out - denoiser(noisy, timesteps, embeds)).abs().max() > 1e-3
        dropped = denoiser(noisy, timesteps, embeds, prompt, drop=torch.tensor([True, False]))
        assert torch.allclose(dropped[0], denoiser(noisy, timesteps, torch.zeros(2, 12))[0], atol=1e-6)
        assert torch.equal(dropped[1], out[1])
        noisier = denoiser.encode_text(ids, word_noise=1.0)
        assert not torch.allclose(noisier[0], prompt[0])
        assert torch.equal(denoiser.encode_text(ids)[0], prompt[0])  # the noise is gone again


def test_a_training_step_reaches_every_weight_but_the_words(denoiser, tokenizer):
    from eegrecon.models.generators.pocket_sdxl import build_scheduler
    from eegrecon.modules.pocket import DenoiserModule

    module = DenoiserModule(denoiser, build_scheduler(), tokenize(tokenizer, [""]), lr=1e-3, total_steps=1)
    module.report = lambda terms: torch.stack(list(terms.values())).sum()  # no trainer here
    captions = tokenize(tokenizer, ["red boat", "a picture of red boat"])[None].expand(64, -1, -1)
    module.training_step((torch.randn(64, 4, 4, 4), torch.randn(64, 12), captions)).backward()
    still = {name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert still == {"denoiser.text_encoder.text_model.embeddings.token_embedding.weight"}
    module.zero_grad()


def test_what_a_training_row_is_told(tokenizer):
    """Captions, empty prompts, embeddings and nothing at all come in the shares that were asked for."""
    from eegrecon.models.generators.pocket_sdxl import build_scheduler
    from eegrecon.modules.pocket import DenoiserModule

    class Recorder(torch.nn.Module):
        def encode_text(self, ids, word_noise):
            self.ids = ids
            return ids, ids

        def forward(self, noisy, timesteps, embeds, prompt, drop):
            self.embeds, self.drop = embeds, drop
            return noisy

    torch.manual_seed(0)
    n, recorder, empty = 20_000, Recorder(), tokenize(tokenizer, [""])
    module = DenoiserModule(recorder, build_scheduler(), empty, captioned=0.4, imageless=0.2, captioned_imageless=0.7,
                            embed_noise=0.1, caption_embed_noise=0.9, lr=1e-3, total_steps=1)  # fmt: skip
    module.report = lambda terms: torch.stack(list(terms.values())).sum()
    captions = tokenize(tokenizer, ["red boat", "a picture of red boat"])[None].expand(n, -1, -1)
    module.training_step((torch.randn(n, 4, 1, 1), torch.zeros(n, 12), captions))
    told = [(recorder.ids == text).all(1) for text in (captions[0, 0], captions[0, 1], empty[0])]
    assert [round(float(rows.float().mean()), 1) for rows in told] == [0.2, 0.2, 0.6]
    captioned, blind = ~told[2], recorder.embeds.abs().sum(1) == 0
    assert blind[captioned].float().mean() == pytest.approx(0.7, abs=0.02)
    assert blind[~captioned].float().mean() == pytest.approx(0.2, abs=0.02)
    assert recorder.drop.float().mean() == pytest.approx(0.1, abs=0.01)
    noise = recorder.embeds[~blind].std(1)  # the embeddings themselves are zero here
    assert noise[~captioned[~blind]].mean() == pytest.approx(0.1, abs=0.01)
    assert noise[captioned[~blind]].mean() == pytest.approx(0.5, abs=0.03)


def test_the_tower_learns_to_speak_like_the_adapter_and_is_then_read_like_it(tokenizer):
    from eegrecon.models.generators.pocket_sdxl import start_text
    from eegrecon.modules.pocket import TextStartModule
    from tests.builders_sdxl import tiny_denoiser

    torch.manual_seed(0)
    denoiser = tiny_denoiser()
    table = word_table(tokenizer, WORDS, embed, width=8)
    denoiser.text_encoder = build_text_encoder(tokenizer, width=8, pooled_dim=4, table=table).eval()
    before = {name: value.clone() for name, value in denoiser.unet.state_dict().items()}
    end, empty = tokenizer.eos_token_id, tokenize(tokenizer, [""])
    captions = tokenize(tokenizer, ["red boat", "wheel", "ferris wheel", "boat"])
    image_embeds = torch.randn(4, 12)
    module = TextStartModule(denoiser, empty, end, word_noise=0.0, empty=0.25, lr=1e-2, total_steps=1)
    module.report = lambda terms: torch.stack(list(terms.values())).sum()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(200):
        loss = module.training_step((captions[:, None], image_embeds))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in denoiser.unet.state_dict().items())
    with torch.no_grad():
        tokens, _ = denoiser.encode_text(captions)
        project = denoiser.unet.encoder_hid_proj.image_projection_layers[0]
        own = (project(image_embeds[:, None]) - project(torch.zeros(1, 1, 12))).reshape(4, 4, 8)  # by hand
        first = (captions == end).int().argmax(1)
        for row in range(4):
            wanted = own[row, torch.arange(int(first[row]), 16) % 4]
            assert torch.nn.functional.cosine_similarity(tokens[row, first[row] :], wanted, dim=1).mean() > 0.9
            assert tokens[row, : first[row]].abs().mean() < 0.3
        assert denoiser.encode_text(empty)[0].abs().mean() < 0.3
        start_text(denoiser)
        noisy, t = torch.randn(2, 4, 4, 4), torch.tensor([500, 900])
        adapter = [p for name, p in denoiser.unet.attn_processors.items() if not name.endswith("attn1.processor")]
        own_keys = [p.to_k_ip[0].weight for p in adapter]
        text_keys = [m.to_k.weight for name, m in denoiser.unet.named_modules() if name.endswith("attn2")]
        assert all(any(torch.equal(a, b) for b in own_keys) for a in text_keys)
        pooled = denoiser(noisy, t, image_embeds[:2], (tokens[:2], torch.randn(2, 4)))
        assert torch.equal(pooled, denoiser(noisy, t, image_embeds[:2], (tokens[:2], torch.randn(2, 4))))
