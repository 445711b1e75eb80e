import json
from dataclasses import replace

import numpy as np
import pytest

from eegrecon.artifacts import read_manifest
from eegrecon.config import TARGET_MODELS, Choice, ExtractTargetsConfig, SetConfig, TargetSpec
from eegrecon.data import ImageSet, TargetStore, target_dir
from eegrecon.errors import ArtifactError, ConfigError, DataError
from eegrecon.stages import extract_targets
from tests.builders import build_tiny_set

CALLS: list[int] = []


class MeanColour:
    """A target model that anyone can recompute: mean colour, times `scale`."""

    kind = "image"
    shape = (3,)

    def __init__(self, scale: float, fail_after: int) -> None:
        self.scale, self.fail_after = scale, fail_after

    def header(self):
        return {
            "model": "mean_colour", "weights_tag": f"{self.scale}", "weights_sha256": "0", "layer": "final",
            "transform": "none", "dim": 3, "scaling_factor": None,
        }  # fmt: skip

    def encode(self, pictures):
        if self.fail_after and sum(CALLS) + len(pictures) > self.fail_after:
            raise KeyboardInterrupt
        CALLS.append(len(pictures))
        return np.stack([np.asarray(p, dtype=np.float32).mean((0, 1)) * self.scale for p in pictures])


def mean_colour(scale: float = 1.0, fail_after: int = 0) -> MeanColour:
    return MeanColour(scale, fail_after)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setitem(TARGET_MODELS, "mean_colour", f"{__name__}:mean_colour")
    CALLS.clear()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return build_tiny_set(tmp_path_factory.mktemp("tiny"))


def config(root, *names, batch_size=7, **args):
    spec = TargetSpec(kind="image", model=Choice("mean_colour", args), batch_size=batch_size)
    return ExtractTargetsConfig(data=SetConfig(root.name, str(root.parent)), targets={name: spec for name in names})


def run(root, cfg, **kw):
    return extract_targets.run(cfg, directory=root, command="test", **kw)


def test_a_store_holds_what_the_model_gave(root):
    manifest = run(root, config(root, "colour"))
    images = ImageSet.from_root(root)
    store = TargetStore(target_dir(root, "colour"), images)
    oracle = np.stack([np.asarray(images.load(i), dtype=np.float64).mean((0, 1)) for i in range(len(images))])
    assert np.allclose(store.rows(np.arange(len(images))), oracle, atol=1e-3)
    assert sum(CALLS) == len(images)
    assert manifest.interface == store.interface()
    assert manifest.interface["model"] == "mean_colour"
    assert read_manifest(store.path).outputs["train.npy"]["shape"] == [36, 3]
    assert read_manifest(store.path).inputs["images"]["manifest_sha256"] == images.sha256


def test_up_to_date_and_another_target(root):
    run(root, config(root, "first"))
    CALLS.clear()
    run(root, config(root, "first", "second", batch_size=5))
    assert sum(CALLS) == 40  # only the new one
    with pytest.raises(ArtifactError, match=r"target.model.args.scale.*--overwrite"):
        run(root, config(root, "first", scale=2.0))
    CALLS.clear()
    run(root, config(root, "first", scale=2.0), overwrite=True)
    assert sum(CALLS) == 40
    assert json.loads((target_dir(root, "first") / "header.json").read_text())["weights_tag"] == "2.0"


def test_a_killed_run_goes_on(root):
    with pytest.raises(KeyboardInterrupt):
        run(root, config(root, "killed", fail_after=20))
    home = target_dir(root, "killed")
    assert not (home / "manifest.json").exists()
    assert not (home / "header.json").exists()
    assert sum(CALLS) == 14  # two batches of 7 were written
    CALLS.clear()
    run(root, config(root, "killed"))
    assert sum(CALLS) == 40 - 14
    run(root, config(root, "straight"))
    index = np.arange(40)
    assert np.array_equal(TargetStore(home).rows(index), TargetStore(target_dir(root, "straight")).rows(index))
    assert (home / "manifest.json").exists()


def test_other_pictures_are_another_input(root, tmp_path):
    own = build_tiny_set(tmp_path)
    run(own, config(own, "colour"))
    rows = json.loads((own / "images.json").read_text())
    rows[0]["sha256"] = "f" * 64
    (own / "images.json").write_text(json.dumps(rows))
    with pytest.raises(ArtifactError, match="the input 'images'"):
        run(own, config(own, "colour"))


def test_refusals(root, monkeypatch):
    with pytest.raises(ConfigError, match="at least one target"):
        run(root, config(root))
    cfg = config(root, "odd", typo=1)
    with pytest.raises(ConfigError, match="typo"):
        run(root, cfg)
    latent = {"odd": replace(config(root, "odd").targets["odd"], kind="vae_latent")}
    with pytest.raises(ConfigError, match="kind is 'vae_latent', but the model 'mean_colour' gives 'image'"):
        run(root, replace(cfg, targets=latent))
    monkeypatch.setattr(MeanColour, "encode", lambda self, pictures: np.full((len(pictures), 3), np.nan))
    with pytest.raises(DataError, match="NaN"):
        run(root, config(root, "bad"))
    assert not (target_dir(root, "bad") / "manifest.json").exists()
    monkeypatch.setattr(MeanColour, "encode", lambda self, pictures: np.zeros((len(pictures), 4)))
    with pytest.raises(DataError, match=r"shape \(7, 4\)"):
        run(root, config(root, "bad2"))
