"""THINGS' flat folders become THINGS-MEG's `images_set`: which picture goes where, and what is refused."""

import json
import os

import mne
import numpy as np
import pytest
from PIL import Image

from eegrecon.cli import main
from eegrecon.data.things_meg import CATCH
from eegrecon.data.things_pictures import find_table, link_shown_pictures, read_table
from eegrecon.errors import DataError

# In THINGS' list camera_lens comes before camera1, which a plain sort would turn round.
CONCEPTS = ["aardvark", "camera_lens", "camera1", "wok", "yak"]
FILES = [f"{name}_{k:02d}{'b' if k == 1 else 's'}.jpg" for name in CONCEPTS for k in (1, 2, 3)]
LIST = [f"images/{name.rsplit('_', 1)[0]}/{name}" for name in FILES]
TESTS = {"camera_lens_03s.jpg", "yak_02s.jpg"}  # shown three times
UNSEEN = {"wok_03s.jpg"}
TRAIN = [name for name in FILES if name.rsplit("_", 1)[0] in ("aardvark", "camera1", "wok") and name not in UNSEEN]


def events(skip=()):
    """Numbers of the pictures in a shuffled order: training once, test three times, the test concepts' others once."""
    found = [i for i, name in enumerate(FILES, start=1) for _ in range(3 if name in TESTS else name not in UNSEEN)]
    for number in skip:
        found.remove(number)
    return np.random.default_rng(0).permutation(np.array([*found, CATCH, CATCH]))


def write_things(
    set_root, pictures="osfstorage/_image_database_things/object_images", table="01_image-level/image-paths"
):
    """The publisher's files: a colour a picture, so that a link to a wrong one shows."""
    for level, line in enumerate(LIST):
        file = set_root / "things" / pictures / line.removeprefix("images/")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (level * 15, 80, 160)).save(file)
    listed = set_root / "things" / f"{table}.csv"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(LIST) + "\n")
    return listed


def write_epochs(set_root, numbers):
    info = mne.create_info([f"MLC{i:02d}-1609" for i in range(3)], 200.0, "mag")
    table = np.column_stack([1800 * np.arange(1, len(numbers) + 1), np.zeros(len(numbers)), numbers]).astype(int)
    data = np.random.default_rng(1).standard_normal((len(numbers), 3, 281))
    home = set_root / "derivatives/preprocessed"
    home.mkdir(parents=True)
    made = mne.EpochsArray(data, info, table, tmin=-0.1, verbose="ERROR")
    made.save(home / "preprocessed_P1-epo.fif", verbose="ERROR")
    return data


def words(root):
    args = [f"data.root={root}", "data.set=meg_flat", f"source.args.path={root / 'meg_flat'}"]
    return ["prepare-data", "--exp", "things_meg/atm_s", "--subject", "1", *args]


def shown(numbers):
    return numbers[numbers != CATCH]


def test_the_published_files_as_they_are_become_a_store(tmp_path):
    """Command line, flat folders and the list: no one sorts anything by hand."""
    home, numbers = tmp_path / "meg_flat", events()
    write_things(home)
    data = write_epochs(home, numbers)
    assert main(words(tmp_path)) == 0
    records = json.loads((home / "images.json").read_text())
    assert [record["image_id"] for record in records] == [
        "train/00001_aardvark/aardvark_01b",
        "train/00001_aardvark/aardvark_02s",
        "train/00001_aardvark/aardvark_03s",
        "train/00003_camera1/camera1_01b",
        "train/00003_camera1/camera1_02s",
        "train/00003_camera1/camera1_03s",
        "train/00004_wok/wok_01b",
        "train/00004_wok/wok_02s",
        "test/00002_camera_lens/camera_lens_03s",
        "test/00005_yak/yak_02s",
    ]
    eeg = np.load(home / "trials/sub-01/train_eeg.npy")
    for row, record in enumerate(records[:8]):
        number = FILES.index(record["path"].rsplit("/", 1)[1]) + 1
        with Image.open(home / record["path"]) as picture:
            assert abs(picture.getpixel((8, 8))[0] - (number - 1) * 15) < 6
        (trial,) = np.flatnonzero(numbers == number)
        np.testing.assert_allclose(eeg[row, 0], data[trial][:, 20:221], atol=2e-3)  # float16
    assert not any(os.readlink(file).startswith("/") for file in home.glob("images_set/*/*/*"))
    tmp_path.joinpath("meg_flat").rename(tmp_path / "moved")  # the links are within the set
    assert all(file.is_file() for file in (tmp_path / "moved").glob("images_set/*/*/*"))


@pytest.mark.parametrize("pictures", ["", "Images", "THINGS/Images", "osfstorage/images_THINGS/object_images"])
@pytest.mark.parametrize("table", ["image_paths", "THINGS/Metadata/Image-specific/image_paths"])
def test_every_home_that_things_has_had(tmp_path, pictures, table):
    listed = write_things(tmp_path, pictures, table)
    assert find_table([tmp_path], tmp_path / "things") == listed
    link_shown_pictures(tmp_path, shown(events()), listed)
    assert sorted(file.name for file in tmp_path.glob("images_set/training_images/*/*")) == sorted(TRAIN)
    assert {file.name for file in tmp_path.glob("images_set/test_images/*/*")} == TESTS


def test_things_may_itself_be_a_link_to_elsewhere(tmp_path):
    listed = write_things(tmp_path / "shared", "Images")
    home = tmp_path / "meg"
    home.mkdir()
    (home / "things").symlink_to(tmp_path / "shared/things")
    link_shown_pictures(home, shown(events()), listed)
    home.rename(tmp_path / "moved")
    assert all(file.is_file() for file in (tmp_path / "moved").glob("images_set/*/*/*"))


def without_pictures(home):
    for file in home.glob("things/**/*.jpg"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "skip", "message"),
    [
        (without_pictures, (), r"neither in .*images_set nor below .*things \(aardvark/aardvark_01b.jpg is not there"),
        (
            lambda home: next(home.glob("things/**/wok_02s.jpg")).unlink(),
            (),
            r"lacks 1 of the 10 pictures that were shown \(such as wok/wok_02s.jpg\)",
        ),
        (
            lambda home: None,
            [FILES.index("yak_02s.jpg") + 1],
            "show pictures 1, 2, 3 times, expected training pictures",
        ),
        (
            lambda home: next(home.glob("things/**/*.csv")).write_text("images/a/a_01b.jpg\n"),
            (),
            "expected a picture's",
        ),
        (
            lambda home: next(home.glob("things/**/*.csv")).write_text("../../a_01b.jpg\n"),
            (),
            "must list pictures such",
        ),
        (
            lambda home: next(home.glob("things/**/*.csv")).unlink(),
            (),
            r"image_paths.csv, which .* nor below .*/things:",
        ),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(tmp_path, capsys, damage, skip, message):
    home = tmp_path / "meg_flat"
    write_things(home)
    write_epochs(home, events(skip))
    damage(home)
    for _ in range(2):
        assert main(words(tmp_path)) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eegrecon: ")]
        assert len(said) == 1
        with pytest.raises(DataError, match=message):
            raise DataError(said[0])
        assert sorted(item.name for item in home.iterdir()) == ["derivatives", "things"]


def test_pictures_shown_equally_often_do_not_tell_test_from_training(tmp_path):
    listed = write_things(tmp_path)
    with pytest.raises(DataError, match=r"show pictures 1 times"):
        link_shown_pictures(tmp_path, np.arange(1, 16), listed)


def test_a_folder_without_links_and_a_link_to_nothing(tmp_path, capsys, monkeypatch):
    home = tmp_path / "meg_flat"
    listed = write_things(home)
    write_epochs(home, events())
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.symlink_to", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not allowed")))
        with pytest.raises(DataError, match=r"cannot be linked into .*images_set \(not allowed\): copy them there"):
            link_shown_pictures(home, shown(events()), listed)
    assert not list(home.glob("images_set*"))
    link_shown_pictures(home, shown(events()), listed)
    without_pictures(home)
    assert main(words(tmp_path)) == 2
    assert "aardvark_01b.jpg cannot be read" in capsys.readouterr().err


def test_a_folder_that_was_named_is_not_replaced_by_another(tmp_path, capsys):
    home = tmp_path / "meg_flat"
    write_things(home)
    write_epochs(home, events())
    assert main([*words(tmp_path), f"source.args.tables={tmp_path / 'elsewhere'}"]) == 2
    assert f"lies in none of {tmp_path / 'elsewhere'}: get it" in capsys.readouterr().err
    assert main([*words(tmp_path), f"source.args.tables={home / 'things/01_image-level'}"]) == 0


def test_the_list(tmp_path):
    listed = write_things(tmp_path)
    assert [str(path) for path in read_table(listed)][3:5] == [
        "camera_lens/camera_lens_01b.jpg",
        "camera_lens/camera_lens_02s.jpg",
    ]
