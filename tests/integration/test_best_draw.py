"""Best of n draws: chosen by what the pictures were made from, never by what was seen."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from eegrecon.artifacts import load_embeds
from eegrecon.config import load
from eegrecon.data import ImageSet
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.metrics.features import picture_tensor
from eegrecon.stages import evaluate, reconstruct
from tests.builders import build_tiny_set
from tests.builders_runs import build_run
from tests.builders_sdxl import tiny_sdxl
from tests.integration.test_reconstruct import EXPERIMENT, N, network

pytestmark = pytest.mark.usefixtures("clean_rank")
DRAWS = 3
MATRIX = torch.randn(48, 256, generator=torch.Generator().manual_seed(0))


def space(pictures):
    """In the place of the target's model: coarse pixels, turned into its 256 dimensions."""
    return (picture_tensor(pictures, 4).flatten(1) - 0.5) @ MATRIX


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_tiny_set(home / "data", test_concepts=N)
    tiny_sdxl(home / "sdxl", dim=256, conditioning={"model": "pocket_clip", "weights_tag": "tiny", "dim": 256})
    build_run(home / "data", home / "run")
    return home


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(evaluate, "load_judge", lambda name: network)
    monkeypatch.setattr(evaluate, "load_target_space", lambda interface: network)
    monkeypatch.setattr(reconstruct, "load_target_space", lambda interface: space)


def config(home, verb, *overrides):
    shared = [f"data.root={home / 'data'}", "data.split.val_concepts=2", *overrides]
    if verb == "reconstruct":
        generator = f"generator.args={{base: {home / 'sdxl'}, num_inference_steps: 2, size: 16}}"
        shared += [generator, f"draws={DRAWS}", "keep=best", "sample.num_inference_steps=3", "batch_size=4"]
        shared += ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
        shared += overrides
    return load(verb, file=EXPERIMENT / f"{verb}.yaml", overrides=shared)


def go(home, run, *overrides):
    directory = run / "reconstruct"
    reconstruct.run(config(home, "reconstruct", *overrides), directory=directory, command="test", overwrite=True)
    return directory, load_embeds(directory / "embeds" / "test.safetensors")


def drawn(home, directory, folder, embeds):
    ids = ImageSet.from_root(home / "data" / "pocket").ids(embeds["image_index"])
    names = [image_id.partition("/")[2].replace("/", "__") for image_id in ids]
    tails = ["", *(f"__draw-{draw}" for draw in range(1, DRAWS))]
    return [[Image.open(directory / folder / f"{name}{tail}.png").convert("RGB") for tail in tails] for name in names]


def test_the_best_draw_is_nearest_to_its_condition_and_no_truth_moves_it(home, tmp_path, monkeypatch):
    run = shutil.copytree(home / "run", tmp_path / "run")
    directory, embeds = go(home, run)
    pictures = drawn(home, directory, "pictures", embeds)  # all of them are on disk
    for row, draws in enumerate(pictures):
        made = space(draws).double()
        condition = torch.from_numpy(embeds["pred_image_embeds"][row]).double()
        cosines = (made * condition).sum(1) / made.norm(dim=1) / condition.norm(dim=1)
        assert int(embeds["chosen_draw"][row]) == int(cosines.argmax())
    assert set(embeds["chosen_draw"].tolist()) != {0}

    payload = json.loads((directory / "metrics.json").read_text())
    assert payload["protocol"]["keep"].startswith("of each picture's draws the one")
    assert payload["protocol"]["draws"] == DRAWS
    chosen = [draws[int(draw)] for draws, draw in zip(pictures, embeds["chosen_draw"], strict=True)]
    seen = [
        ImageSet.from_root(home / "data" / "pocket").load(int(i)).resize((16, 16), 2) for i in embeds["image_index"]
    ]
    pairs = zip((np.asarray(one, float).ravel() for one in chosen), (np.asarray(one, float).ravel() for one in seen),
                strict=True)  # fmt: skip
    pixcorr = np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])
    assert payload["metrics"]["test/pixcorr"]["value"] == pytest.approx(pixcorr, abs=1e-3)

    evaluate.run(config(home, "evaluate"), directory=run / "evaluate", command="test")
    again = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert again["metrics"] == payload["metrics"]
    assert again["protocol"]["keep"] == payload["protocol"]["keep"]

    # Other truths: the seen pictures' embeddings dealt to others, the pictures themselves all grey.
    decode = reconstruct.decode

    def other_truth(cfg, upstream):
        found = decode(cfg, upstream)
        return found | {"image_embeds": found["image_embeds"].roll(1, dims=0)}

    monkeypatch.setattr(reconstruct, "decode", other_truth)
    monkeypatch.setattr(ImageSet, "load", lambda self, index: Image.effect_noise((16, 16), 50).convert("RGB"))
    _, other = go(home, run)
    assert np.array_equal(other["chosen_draw"], embeds["chosen_draw"])
    # the ceiling's condition is the seen picture's own embedding, so its choice may move, and follows the same rule
    for row, draws in enumerate(drawn(home, directory, "pictures_ceiling", other)):
        made = space(draws)
        condition = decode_truth(home, other, row)
        cosines = torch.nn.functional.cosine_similarity(made, condition[None], dim=1)
        assert int(other["chosen_draw_ceiling"][row]) == int(cosines.argmax())


def decode_truth(home, embeds, row):
    """The embedding that the ceiling's picture was made from after `roll`."""
    from eegrecon.data import TargetStore, target_dir

    rows = TargetStore(target_dir(home / "data" / "pocket", "clip-pocket")).rows(embeds["image_index"])
    return torch.from_numpy(np.roll(rows, 1, axis=0)[row])


def test_all_draws_count_without_it(home, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    directory, embeds = go(home, run, "keep=all")
    assert "chosen_draw" not in embeds
    assert (
        json.loads((directory / "metrics.json").read_text())["protocol"]["keep"] == "all draws, their scores averaged"
    )


def test_nothing_to_choose_from_and_another_space_are_refused(home, tmp_path, monkeypatch):
    run = shutil.copytree(home / "run", tmp_path / "run")
    with pytest.raises(ConfigError, match="keep is 'best' but draws is 1: set draws to 2 or more"):
        go(home, run, "draws=1")
    monkeypatch.setattr(reconstruct, "load_target_space", lambda interface: network)
    with pytest.raises(ArtifactError, match="gives 48 numbers and the pictures were made from 256"):
        go(home, run)
