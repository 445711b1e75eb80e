"""The pocket SDXL's text side: whole words as tokens, meanings to start from, and the real pipeline's own encoding."""

import pytest
import torch

from eegrecon.models.generators.pocket_sdxl import PocketDenoiser, build_unet, save_pocket_sdxl
from eegrecon.models.generators.pocket_text import (
    TEMPLATE,
    build_text_encoder,
    build_tokenizer,
    caption_words,
    learn_merges,
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


def test_the_vocabulary_does_not_depend_on_the_process(tokenizer):
    assert build_tokenizer(reversed(WORDS)).get_vocab() == tokenizer.get_vocab()
    # ties go by the alphabet, which the order of a hash map would not
    assert learn_merges(["wo", "ab", "boa"]) == [("a", "b</w>"), ("b", "o"), ("bo", "a</w>"), ("w", "o</w>")]


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


def caption_module(denoiser, tokenizer, **options):
    from eegrecon.models.generators.pocket_sdxl import build_scheduler
    from eegrecon.modules.pocket import CaptionModule

    captions = torch.stack(
        [tokenize(tokenizer, [TEMPLATE.format(title), title]) for title in ("red boat", "wheel", "boats")]
    )
    named = torch.arange(3.0)[:, None].expand(-1, 12) * 10 + 10
    empty = tokenize(tokenizer, [""])
    module = CaptionModule(denoiser, build_scheduler(), empty, captions, named, lr=1e-3, total_steps=1, **options)
    module.report = lambda terms: torch.stack(list(terms.values())).sum()  # no trainer here
    return module


def test_captions_train_the_text_side_and_nothing_else(denoiser, tokenizer):
    module = caption_module(denoiser, tokenizer)
    rows = (torch.randn(64, 4, 4, 4), torch.randn(64, 12), torch.arange(64) % 3)
    module.training_step(rows).backward()
    learning = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    text = {name for name in learning if name.startswith("denoiser.text_encoder.")}
    keys = {name for name in learning if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert text
    assert len(keys) == 2 * len([name for name in denoiser.unet.attn_processors if "attn2" in name])
    pooled = "denoiser.unet.add_embedding.linear_1.weight"
    assert learning == text | keys | {pooled}
    gradient = denoiser.unet.add_embedding.linear_1.weight.grad
    assert gradient[:, :4].abs().sum() > 0  # the pooled prompt's columns
    assert gradient[:, 4:].abs().sum() == 0  # those of the sizes
    assert not any("token_embedding" in name for name in learning)
    module.zero_grad()
    denoiser.unet.requires_grad_(True)


def test_what_a_row_and_its_teacher_are_told(denoiser, tokenizer):
    """Captions, empty prompts and embeddings in the shares asked for, and a teacher who knows what is named."""
    torch.manual_seed(0)
    n = 20_000
    module = caption_module(
        denoiser, tokenizer, empty=0.2, imageless=0.3, other=0.5, pull=0.25, embed_noise=0.8, word_noise=0.0
    )
    title = torch.zeros(n, dtype=torch.long)
    ids, embeds, teacher = module.told(torch.zeros(n, 12), title)
    named = [(ids[:, None] == module.captions[k]).all(-1).any(-1) for k in range(3)]
    empty, blind = (ids == module.empty_prompt).all(1), embeds.abs().sum(1) == 0
    assert empty.float().mean() == pytest.approx(0.2, abs=0.01)
    assert blind.float().mean() == pytest.approx(0.3, abs=0.01)
    # half keep their own title, and the other half draw among all three
    shares = [float(rows.float().mean()) / 0.8 for rows in named]
    assert shares == pytest.approx([0.5 + 0.5 / 3, 0.5 / 3, 0.5 / 3], abs=0.02)
    assert (empty | torch.stack(named).any(0)).all()
    assert embeds[~blind].std(1).mean() == pytest.approx(0.4, abs=0.02)
    assert torch.equal(teacher[empty], embeds[empty])
    for k in range(3):
        assert torch.allclose(teacher[named[k] & blind], module.named[k])
        both = named[k] & ~blind
        assert torch.allclose(teacher[both], 0.75 * embeds[both] + 0.25 * module.named[k], atol=1e-4)
    denoiser.unet.requires_grad_(True)


def test_a_caption_learns_to_do_what_the_named_embedding_does(tokenizer):
    """Trained, the UNet answers a caption as it answers the embedding, and is unchanged where there is no prompt."""
    from tests.builders_sdxl import tiny_denoiser

    torch.manual_seed(0)
    denoiser = tiny_denoiser()
    table = word_table(tokenizer, WORDS, embed, width=8)
    denoiser.text_encoder = build_text_encoder(tokenizer, width=8, pooled_dim=4, table=table)
    module = caption_module(denoiser, tokenizer, empty=0.2, imageless=1.0, word_noise=0.0)
    module.named.copy_(3 * torch.randn(3, 12))
    noisy, t, none = torch.randn(3, 4, 4, 4), torch.tensor([900, 700, 500]), torch.zeros(3, 12)

    @torch.no_grad()
    def error(order):
        said = denoiser(noisy, t, none, denoiser.encode_text(module.captions[order, 0]))
        return float((said - denoiser(noisy, t, module.named)).pow(2).mean())

    before, alone, own = denoiser(noisy, t, module.named).detach(), error([0, 1, 2]), [0, 1, 2]
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(150):
        latents = torch.randn(32, 4, 4, 4)
        loss = module.training_step((latents, torch.randn(32, 12), torch.arange(32) % 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error(own) < 0.5 * alone
    assert error(own) < 0.5 * error([1, 2, 0])
    assert torch.equal(before, denoiser(noisy, t, module.named).detach())


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
