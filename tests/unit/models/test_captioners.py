"""Captions from visual tokens: GIT with its image encoder replaced, the projector in front of it, and the towers."""

import pytest
import torch

from eegrecon.errors import ConfigError, DataError
from eegrecon.models.captioners import git
from eegrecon.models.captioners.projector import PixelProjector


def git_large_layout(**changes):
    """A GitConfig of git-large-coco's widths (vision 1024 x 257 tokens, text 768) at one layer and few words."""
    from transformers import GitConfig

    vision = {
        "hidden_size": 1024, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 14,
    }  # fmt: skip
    sizes = {"vocab_size": 40, "num_hidden_layers": 1, "intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    return GitConfig(vision_config=vision, **{**sizes, **changes})


class Letters:
    """A tokenizer of one letter a token; 0, 1 and 2 are special."""

    def batch_decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return [" ".join(chr(94 + int(t)) for t in row if t > 2) for row in tokens]


def captioner(seed=0, **options):
    from transformers import GitForCausalLM

    torch.manual_seed(seed)
    model = GitForCausalLM(git_large_layout(initializer_range=0.2))
    return git.GitCaptioner(model, Letters(), "tiny", "random", **{"max_new_tokens": 6, **options})


def test_features_take_the_place_of_the_vision_tower():
    """git-large's layout: its own tower's tokens, handed in as (b, 1, 257, 1024), give the same logits."""
    from transformers import GitForCausalLM

    torch.manual_seed(0)
    model = GitForCausalLM(git_large_layout(initializer_range=0.2)).eval()
    pixels, words = torch.randn(2, 3, 224, 224), torch.tensor([[1, 5, 7], [1, 9, 4]])
    with torch.no_grad():
        tokens = model.git.image_encoder(pixels).last_hidden_state
        asked = model(input_ids=words, pixel_values=pixels).logits
        replaced = git.GitCaptioner(model, Letters(), "tiny", "random")
        assert (replaced.n_tokens, replaced.width) == tuple(tokens.shape[1:]) == (257, 1024)
        given = model(input_ids=words, pixel_values=tokens[:, None]).logits
    assert torch.equal(asked, given)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_batch_of_different_pictures_equals_one_by_one_and_repeats(num_beams):
    network = captioner(num_beams=num_beams)
    features = 3 * torch.randn(4, 257, 1024)
    together = network.caption(features)
    assert together == [network.caption(one[None])[0] for one in features]
    assert together == network.caption(features, batch_size=3) == network.caption(features)
    assert len(set(together)) > 1  # the features are listened to


def test_the_words_are_the_likeliest_one_after_another():
    """An independent oracle: greedy search written out, without a cache."""
    network = captioner()
    features = 3 * torch.randn(1, 257, 1024)
    words = [1]
    with torch.no_grad():
        while len(words) < 7 and words[-1] != 2:
            logits = network.model(input_ids=torch.tensor([words]), pixel_values=features[:, None]).logits
            words.append(int(logits[0, -1].argmax()))
    assert network.caption(features) == Letters().batch_decode([words], skip_special_tokens=True)


def test_wrong_shapes_and_numbers_are_refused():
    network = captioner()
    with pytest.raises(ValueError, match=r"must be \(b, 257, 1024\) for tiny, got \(2, 5, 1024\)"):
        network.caption(torch.zeros(2, 5, 1024))
    with pytest.raises(ConfigError, match="at least 1; got 0 and 6"):
        captioner(num_beams=0)


def test_a_captioner_that_is_not_there_says_what_to_fetch(tmp_path):
    with pytest.raises(DataError, match="`hf download microsoft/git-large-coco`"):
        git.load_git("microsoft/git-large-coco")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="is a bert, not a GIT"):
        git.load_git(str(tmp_path))
    with pytest.raises(DataError, match=r"the pocket captioner is missing: .*make pocket-weights"):
        git.load_git("pocket", weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match="leave `weights` empty"):
        git.load_git("microsoft/git-large-coco", weights="x")


def test_a_folder_with_a_git_loads_its_tower_and_its_words(tmp_path):
    """What `hf download` leaves behind, made here: the store's tower and the captioner agree on who they are."""
    from PIL import Image
    from transformers import CLIPImageProcessor, GitForCausalLM

    from eegrecon.models.captioners.tower import load_tower

    GitForCausalLM(git_large_layout(vocab_size=30522)).save_pretrained(tmp_path)
    git.pocket_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="has no preprocessor_config"):
        load_tower(str(tmp_path))
    CLIPImageProcessor().save_pretrained(tmp_path)
    tower, network = load_tower(str(tmp_path)), git.load_git(str(tmp_path), max_new_tokens=3)
    tokens = tower.encode([Image.new("RGB", (50, 40), colour) for colour in ("red", "blue")])
    assert tokens.shape == (2, *tower.shape) == (2, 257, 1024)
    header, interface = tower.header(), network.interface()
    assert (header["model"], header["weights_tag"]) == (interface["model"], interface["weights_tag"])
    assert len(network.caption(torch.from_numpy(tokens))) == 2


def test_the_pocket_captioner_trains_all_but_its_words():
    model = git.build_pocket_git()
    own = git.trained_tensors(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(own)
    assert 2 * sum(value.numel() for value in own.values()) < 6e6  # bytes of the shipped file
    words = model.git.embeddings.word_embeddings.weight
    assert model.output.weight.data_ptr() == words.data_ptr()
    tokenizer = git.pocket_tokenizer()
    near = torch.nn.functional.cosine_similarity(
        words[tokenizer.convert_tokens_to_ids("dog")], words[tokenizer.convert_tokens_to_ids(["dogs", "of"])]
    )
    assert near[0] > near[1]  # MiniLM's table, not a random one


def test_four_quarters_are_where_they_say():
    from eegrecon.models.captioners.tower import four_quarters

    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 1, :2, 2:] = 8.0  # upper right
    assert four_quarters(maps)[0, :, 1].tolist() == [2.0, 0.0, 8.0, 0.0, 0.0]


def test_the_projector_is_the_published_stack_and_gives_different_tokens():
    projector = PixelProjector(dim=6, n_tokens=3, width=5)
    assert {name: tuple(value.shape) for name, value in projector.state_dict().items()} == {
        "over_tokens.weight": (3, 1), "over_tokens.bias": (3,), "token_norm.weight": (3,), "token_norm.bias": (3,),
        "over_width.weight": (5, 6), "over_width.bias": (5,), "width_norm.weight": (5,), "width_norm.bias": (5,),
    }  # fmt: skip
    embeds = torch.randn(4, 6)
    out = projector(embeds)
    # image_adapter.ipynb's nn.Sequential, written out: 'B C L->B L C', Linear, LayerNorm, back, Linear, LayerNorm
    published = torch.nn.Sequential(projector.over_tokens, projector.token_norm)(embeds[:, None].transpose(1, 2))
    published = projector.width_norm(projector.over_width(published.transpose(1, 2)))
    assert torch.equal(out, published)
    assert (out[:, 0] - out[:, 1]).abs().mean() > 0.1
    with pytest.raises(ValueError, match=r"must be \(b, 6\), got \(4, 1, 6\)"):
        projector(embeds[:, None])


def test_the_shipped_captioner_names_what_it_trained_on_and_fits_the_limits():
    """Scenes of training drawings that it never saw (24 of each were), through its own tower."""
    from eegrecon.models.captioners.tower import load_tower
    from eegrecon.pocket.drawings import concepts
    from eegrecon.pocket.pictures import spare_scene

    some = [drawing for drawing in concepts() if drawing.side == "train"][::16]
    tower, network = load_tower("pocket"), git.load_git("pocket")
    header, interface = tower.header(), network.interface()
    assert (header["model"], header["weights_tag"]) == (interface["model"], interface["weights_tag"])
    tokens = torch.from_numpy(tower.encode([spare_scene(drawing, 30, size=128) for drawing in some]))
    captions = network.caption(tokens)
    right = [caption == f"a picture of {drawing.title}" for caption, drawing in zip(captions, some, strict=True)]
    assert len(some) > 20
    assert sum(right) >= 0.15 * len(some), captions  # of 1,527 names; hues are shifted, so tomatoes pass for apples
    assert network.caption(tokens.roll(1, 0)) != captions
    files = list(git.POCKET_FILE.parents[1].rglob("*.safetensors"))
    assert max(path.stat().st_size for path in files) <= 15 * 2**20
    assert sum(path.stat().st_size for path in files) <= 35e6
