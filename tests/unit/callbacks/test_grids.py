import numpy as np
import pytest
from PIL import Image

from eegrecon.callbacks.grids import log_picture, picture_grid, save_picture

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
PICTURES = [Image.new("RGB", (4, 4), colour) for colour in COLOURS]


def places(grid, colour):
    """Centres of the squares of one colour, left to right and top to bottom, as (y, x)."""
    mask = (np.asarray(grid) == colour).all(-1)
    return np.argwhere(mask).mean(0) if mask.any() else None


def test_every_picture_is_shown_under_its_column_and_wraps():
    grid = picture_grid({"seen": PICTURES}, list("abcde"), columns=3, cell=32)
    spots = [places(grid, colour) for colour in COLOURS]
    assert all(spot is not None for spot in spots)
    assert spots[0][0] == spots[1][0] == spots[2][0] < spots[3][0] == spots[4][0]
    assert spots[0][1] == spots[3][1] < spots[1][1] == spots[4][1] < spots[2][1]


def test_rows_stand_in_order():
    rows = {"seen": PICTURES[:1], "from EEG": PICTURES[1:2], "ceiling": PICTURES[2:3]}
    grid = picture_grid(rows, ["a long caption that does not fit the cell"], cell=48, title="t", footer="f")
    heights = [places(grid, colour)[0] for colour in COLOURS[:3]]
    assert heights == sorted(heights)


def test_rows_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="every row needs 2"):
        picture_grid({"seen": PICTURES}, ["a", "b"])
    with pytest.raises(ValueError, match="every row needs 0"):
        picture_grid({"seen": []}, [])


def test_saved_and_logged(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    save_picture(PICTURES[0], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (4, 4)
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    log_picture(logger, "pictures/grid", PICTURES[0])
    logger.finalize("success")
    logger.experiment.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["pictures/grid"]
    log_picture(None, "pictures/grid", PICTURES[0])
