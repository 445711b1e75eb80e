import types

import numpy as np
import pytest
import torch
from PIL import Image

from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.models import judges, vision


def test_efflite2_features_tell_pictures_apart():
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    network = judges.load_judge("efflite2")
    with torch.inference_mode():
        features = network(pictures)
    assert features.shape == (2, 1280)
    assert not torch.allclose(features[0], features[1])
    with pytest.raises(ConfigError, match="efflite2"):
        judges.load_judge("alexnet")


def test_target_space_must_have_the_weights_of_the_store(monkeypatch):
    model = types.SimpleNamespace(
        weights_tag="pocket-1", encode=lambda pictures: np.ones((len(pictures), 3), np.float32)
    )
    monkeypatch.setattr(vision, "load_pocket_clip", lambda: model)
    network = judges.load_target_space({"model": "pocket_clip", "weights_tag": "pocket-1"})
    assert network([None, None]).tolist() == [[1.0] * 3] * 2
    with pytest.raises(ArtifactError, match=r"pocket-2.*pocket-1"):
        judges.load_target_space({"model": "pocket_clip", "weights_tag": "pocket-2"})
