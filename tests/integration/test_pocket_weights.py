"""The stage that trains the shipped weights: every part at two steps, resumable, in published layouts."""

import json

import pytest
import torch
from safetensors.torch import load_file

from eegrecon.artifacts import read_manifest
from eegrecon.config import load
from eegrecon.data.splits import held_out_concepts
from eegrecon.pocket.drawings import Drawing, concepts, other_drawings
from eegrecon.stages import pocket_weights, pocket_words

PARTS = ("heads", "autoencoder", "captioner", "denoiser", "text", "captioned")
TINY = [
    "scenes=2",
    "caption_scenes=1",
    "extra_words=20",
    *(f"{part}.steps=2" for part in PARTS),
    *(f"{part}.batch_size=4" for part in PARTS),
    "trainer={accelerator: cpu, devices: 1, enable_progress_bar: false}",
]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(pocket_weights, "training_drawings", lambda cfg: list(other_drawings()[:4]))
    monkeypatch.setattr(pocket_words, "candidate_words", lambda: ["boat", "tree", "face"])  # not all 30,000


def test_every_part_trains_and_the_export_loads(few, tmp_path):
    cfg = load("pocket-weights", "pocket_weights", None, TINY)
    manifest = pocket_weights.run(cfg, directory=tmp_path / "w", command="test")
    assert manifest.data["drawings"] == 4
    heads = load_file(tmp_path / "w" / "clip" / "heads.safetensors")
    assert {k: v.dtype for k, v in heads.items()}["visual.head.proj.weight"] == torch.float16
    from eegrecon.models.generators.sdxl import SDXLGenerator

    generator = SDXLGenerator(base=str(tmp_path / "w" / "sdxl"), num_inference_steps=1, guidance_scale=1.0)
    picture = generator(torch.zeros(1, 256), generators=[torch.Generator().manual_seed(0)])
    assert picture.shape == (1, 3, 64, 64)
    index = json.loads((tmp_path / "w" / "sdxl" / "model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
    from eegrecon.models.captioners.git import load_git

    captioner = load_git(weights=str(tmp_path / "w" / "captioner" / "model.safetensors"), max_new_tokens=4)
    assert len(captioner.caption(torch.randn(2, 5, 1280))) == 2
    assert not (tmp_path / "w" / "checkpoints").exists()
    before = (tmp_path / "w" / "manifest.json").read_text()
    pocket_weights.run(cfg, directory=tmp_path / "w", command="again")
    assert (tmp_path / "w" / "manifest.json").read_text() == before
    assert read_manifest(tmp_path / "w").stage == "pocket-weights"
    assert json.loads(before)["outputs"]


def test_a_killed_run_ends_like_one_that_was_not(few, tmp_path, monkeypatch):
    """Killed after the last part but for the writing: every part is there, and with its averaged weights."""
    cfg = load("pocket-weights", "pocket_weights", None, TINY)
    pocket_weights.run(cfg, directory=tmp_path / "whole", command="test")

    def die(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("eegrecon.models.generators.pocket_sdxl.save_pocket_sdxl", die)
        with pytest.raises(KeyboardInterrupt):
            pocket_weights.run(cfg, directory=tmp_path / "cut", command="test")
    assert not (tmp_path / "cut" / "manifest.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("eegrecon.stages.trainer.fit_from", die)  # nothing trains again
        pocket_weights.run(cfg, directory=tmp_path / "cut", command="test")
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) >= 5
    for file in files:
        whole, cut = load_file(tmp_path / "whole" / file), load_file(tmp_path / "cut" / file)
        assert all(torch.equal(value, cut[name]) for name, value in whole.items()), file


def test_held_out_concepts_and_their_look_alikes_are_never_seen(monkeypatch):
    cfg = load("pocket-weights", "pocket_weights", None, TINY)
    train = [d for d in concepts() if d.side == "train"]
    held = {train[i] for i in held_out_concepts(len(train), 60, 0)}
    test = {d for d in concepts() if d.side == "test"}
    twin = Drawing("twin", "twin", next(iter(test)).twemoji, "")
    stranger = other_drawings()[0]
    monkeypatch.setattr("eegrecon.pocket.drawings.other_drawings", lambda: (twin, stranger))
    seen = set(pocket_weights.training_drawings(cfg))
    assert not seen & (held | test)
    assert twin not in seen
    assert len(seen) >= len(train) - 60
