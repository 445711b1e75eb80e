import types

import numpy as np
import torch
from PIL import Image

from eegrecon.callbacks.grids import to_pil
from eegrecon.callbacks.reconstruction import ReconstructionWriter, picture_file


def test_pictures_are_written_under_their_image_ids(tmp_path):
    ids = {7: "test/00001_cat/cat_01b", 3: "test/00002_dog/dog_02s"}
    writer = ReconstructionWriter([tmp_path / "a", tmp_path / "b"], ids)
    pictures = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = {"pictures": pictures, "image_index": torch.tensor([7, 3, 7]), "draw": torch.tensor([0, 0, 2])}
    writer.on_predict_batch_end(None, None, outputs, {}, 0, 0)
    writer.on_predict_batch_end(None, None, {key: value[:1] for key, value in outputs.items()}, {}, 0, 1)
    names = ["00001_cat__cat_01b.png", "00001_cat__cat_01b__draw-2.png", "00002_dog__dog_02s.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    assert [path.name for path in (tmp_path / "b").iterdir()] == names[:1]
    with Image.open(tmp_path / "a" / names[2]) as picture:
        read = np.asarray(picture)
    np.testing.assert_array_equal(read, (pictures[1].permute(1, 2, 0) * 255).round().byte().numpy())


def test_waits_for_the_other_ranks():
    calls = []
    trainer = types.SimpleNamespace(strategy=types.SimpleNamespace(barrier=calls.append))
    ReconstructionWriter([], {}).on_predict_end(trainer, None)
    assert len(calls) == 1


def test_names_are_unique():
    names = {picture_file(f"test/{c:05d}_x/{e}", d) for c in range(3) for e in ("a", "b") for d in range(3)}
    assert len(names) == 18


def test_to_pil_rounds_and_clips():
    picture = to_pil(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1))
    assert picture.getpixel((0, 0)) == (0, 128, 255)
