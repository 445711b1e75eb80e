"""Captions from image embeddings: names by retrieval, GIT behind a projector, and who may be joined to whom."""

import numpy as np
import pytest
import torch

from eegrecon.artifacts import new_manifest, write_manifest
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.models.captioners import git
from eegrecon.models.captioners.projector import PixelProjector
from eegrecon.models.captioners.retrieval import NameRetrieval
from eegrecon.pathways.captions import captions_of, training_names

SPACE = {"name": "clip", "model": "pocket_clip", "weights_tag": "t", "layer": "final", "dim": 6, "normalised": False}
NAMES = {"a picture of red fox": [1.0, 0, 0], "a picture of boat": [0, 1.0, 0], "a picture of tree": [0, 0, 1.0]}


def towers(texts):
    return torch.tensor([NAMES[text] for text in texts])


def test_the_nearest_name_is_said():
    retrieval = NameRetrieval(["tree", "red_fox", "boat", "red fox"], towers)
    assert retrieval.names == ["boat", "red fox", "tree"]
    embeds = torch.tensor([[0.2, 0.9, 0.1], [5.0, 0.1, 0.2]])
    assert retrieval.captions(embeds) == ["a picture of boat", "a picture of red fox"]
    with pytest.raises(ValueError, match=r"must be \(n, 3\), got \(2, 4\)"):
        retrieval.captions(torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="need names to choose from"):
        NameRetrieval([], towers)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A projector's directory, and in the captioner's place one that writes down its tokens."""
    torch.manual_seed(0)
    projector = PixelProjector(6, 2, 3)

    class Spelling(torch.nn.Module):
        def interface(self):
            return {"model": "tiny", "weights_tag": "w", "n_tokens": 2, "width": 3}

        def caption(self, features):
            return [" ".join(f"{value:.4f}" for value in row.flatten().tolist()) for row in features]

    monkeypatch.setattr(git, "load_git", lambda name, num_beams: Spelling())
    from safetensors.torch import save_file

    home = tmp_path / "projector"
    home.mkdir()
    save_file(projector.state_dict(), home / "model.safetensors")
    (home / "config.yaml").write_text("{}\n")
    interface = {**SPACE, "captioner": Spelling().interface()}
    write_manifest(home, new_manifest("train-projector", command="t", config_hash="0", seed=0, data={},
                                      interface=interface, outputs={"model.safetensors": {}}))  # fmt: skip
    return projector, home


def test_embeddings_go_through_the_projector_of_their_space(parts):
    projector, home = parts
    embeds = torch.randn(70, 6)  # more than go through at once
    found = captions_of(embeds, {**SPACE, "name": "another name of the same"}, source="captions", projector=home)
    with torch.no_grad():
        wanted = [" ".join(f"{value:.4f}" for value in row.flatten().tolist()) for row in projector(embeds)]
    assert len(found) == 70
    same = [np.allclose([float(x) for x in a.split()], [float(x) for x in b.split()], atol=2e-4)
            for a, b in zip(found, wanted, strict=True)]  # fmt: skip
    assert all(same)


@pytest.mark.parametrize(("changed", "message"), [
    ({"weights_tag": "other"}, "weights_tag is 't' there and 'other' here"),
    ({"normalised": True}, "normalised is False there and True here"),
    ({"kind": "text"}, "kind is 'nothing' there and 'text' here"),
])  # fmt: skip
def test_another_space_is_refused(parts, changed, message):
    with pytest.raises(ArtifactError, match=message):
        captions_of(torch.zeros(1, 6), {**SPACE, **changed}, source="captions", projector=parts[1])


def test_another_captioner_is_refused(parts, monkeypatch):
    class Other:
        def interface(self):
            return {"model": "git-large-coco", "weights_tag": "abc", "n_tokens": 257, "width": 1024}

    monkeypatch.setattr(git, "load_git", lambda name, num_beams: Other())
    with pytest.raises(ArtifactError, match=r"tokens for tiny w \(2 x 3\), but the captioner is git-large-coco abc"):
        captions_of(torch.zeros(1, 6), SPACE, source="captions", projector=parts[1])


@pytest.mark.parametrize(("given", "message"), [
    ({"source": "guess"}, "the source of captions is 'guess'; choose one of captions, retrieval"),
    ({"source": "captions"}, "captions need a projector"),
    ({"source": "captions", "projector": "p", "names": ["x"]}, "names mean nothing to captions of the source"),
    ({"source": "retrieval", "projector": "p", "num_beams": 2}, "projector, num_beams mean nothing"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        captions_of(torch.zeros(1, 6), SPACE, **given)


def test_retrieval_asks_the_text_tower_of_the_embeddings_own_model(monkeypatch):
    from eegrecon.models import judges

    class Clip:
        def to(self, device):
            return self

        def encode_texts(self, texts):
            return towers(texts).numpy()

    asked = []
    monkeypatch.setattr(judges, "load_clip_space", lambda interface: asked.append(interface) or Clip())
    found = captions_of(torch.tensor([[0.0, 0, 9.0]]), SPACE, source="retrieval", names=["boat", "tree"])
    assert found == ["a picture of tree"]
    assert asked == [SPACE]


def test_the_usual_vocabulary_is_training_concepts_only(tmp_path):
    from eegrecon.data import ImageSet
    from tests.builders import build_tiny_set

    names = training_names(ImageSet.from_root(build_tiny_set(tmp_path, train_concepts=3, test_concepts=2)))
    assert names == ["thing01", "thing02", "thing03"]
