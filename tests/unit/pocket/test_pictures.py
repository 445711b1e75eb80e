"""The pocket pictures: THINGS' layout, deterministic, no concept on two sides."""

import json

import numpy as np
import pytest
from PIL import Image

from eegrecon.errors import DataError
from eegrecon.pocket.drawings import STYLES, concepts, other_drawings, render
from eegrecon.pocket.pictures import chosen, picture, render_set, spare_scene


def small(root, **changes):
    settings = {"train_concepts": 3, "test_concepts": 2, "exemplars": 2, "size": 32, "seed": 0} | changes
    render_set(root, **settings)
    return sorted(str(p.relative_to(root)) for p in root.rglob("*.jpg"))


def test_counts_and_sides():
    sides = [drawing.side for drawing in concepts()]
    assert sides.count("train") >= 540
    assert sides.count("test") == 200
    names = [drawing.concept for drawing in concepts()]
    assert names == sorted(set(names))
    for style in STYLES:
        codes = [getattr(drawing, style) for drawing in concepts()]
        assert len(set(codes)) == len(codes)
        assert all(codes)


def test_other_drawings_are_no_concepts():
    taken = {drawing.twemoji for drawing in concepts()}
    others = other_drawings()
    assert len(others) > 900
    assert not taken & {drawing.twemoji for drawing in others}


def test_layout_is_that_of_things(tmp_path):
    files = small(tmp_path / "images_set")
    assert len(files) == 3 * 2 + 2
    first = chosen("train", 3)[0].concept
    assert f"training_images/00001_{first}/{first}_01b.jpg" in files
    assert f"training_images/00001_{first}/{first}_02s.jpg" in files
    folders = sorted({f.split("/")[1] for f in files if f.startswith("test")})
    assert [f[:5] for f in folders] == ["00001", "00002"]
    assert (tmp_path / "images_set" / "ATTRIBUTION.md").read_text().count("CC BY") >= 3


def test_same_seed_same_pictures_other_seed_others(tmp_path):
    files = small(tmp_path / "a")
    small(tmp_path / "b")
    small(tmp_path / "c", seed=1)
    a, b, c = (np.asarray(Image.open(tmp_path / d / files[0])).astype(int) for d in "abc")
    assert (a == b).all()
    assert np.abs(a - c).mean() > 5


def test_finished_set_is_left_alone_and_another_recipe_is_refused(tmp_path):
    root = tmp_path / "images_set"
    files = small(root)
    before = (root / files[0]).stat().st_mtime_ns
    small(root)
    assert (root / files[0]).stat().st_mtime_ns == before
    with pytest.raises(DataError, match="another recipe"):
        small(root, exemplars=3)
    assert json.loads((root / "recipe.json").read_text())["exemplars"] == 2


def test_killed_run_leaves_nothing_that_looks_finished(tmp_path):
    root = tmp_path / "images_set"

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(root, progress=stop)
    assert not root.exists()
    assert len(small(root)) == 8


def test_too_many_concepts_are_refused():
    with pytest.raises(DataError, match="has 200 test concepts"):
        chosen("test", 201)


def test_scene_is_drawn_and_spare_scenes_differ():
    drawing = concepts()[0]
    shown = np.asarray(picture(drawing, 0, size=64, seed=0)).astype(int)
    spare = np.asarray(spare_scene(drawing, 0, size=64)).astype(int)
    assert shown.shape == (64, 64, 3)
    assert np.abs(shown - spare).mean() > 5


def test_missing_drawing_is_one_sentence():
    with pytest.raises(DataError, match="has no drawing 'nope'"):
        render("twemoji", "nope")
