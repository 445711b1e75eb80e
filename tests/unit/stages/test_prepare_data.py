"""prepare-data on a tiny set: stores, truth, up to date, other config, kills, disk."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from eegrecon.artifacts import read_manifest
from eegrecon.config import SOURCES, Choice, config_hash, load, to_dict
from eegrecon.data import THINGS_EEG2_CHANNELS, ImageSet, TrialStore
from eegrecon.errors import ArtifactError, ConfigError, DataError
from eegrecon.pocket.brain import CH_NAMES, BrainParams
from eegrecon.pocket.noise import NoiseParams
from eegrecon.pocket.truth import Truth
from eegrecon.registry import check_args, lookup
from eegrecon.stages import disk, prepare_data, prepare_pocket

TINY = [
    "pictures.train_concepts=3", "pictures.test_concepts=2", "pictures.exemplars=2", "pictures.size=32",
    "brain.train_repetitions=2", "brain.test_repetitions=4", "brain.gain=0.2",
]  # fmt: skip


def tiny_config(*overrides):
    return load("prepare-data", "pocket", None, [*TINY, *overrides])


def fake_features(model, pictures, size, batch_size=64):
    return np.stack([np.resize(np.asarray(p, dtype=np.float32), 1280) / 255 for p in pictures])


def lighten(patch):
    """A small noise bank, and pixels instead of EfficientNet-Lite1."""
    patch.setattr(prepare_pocket, "BrainParams", partial(BrainParams, noise=NoiseParams(n_traces=8)))
    patch.setattr(prepare_pocket, "efficientnet_lite", lambda level: None)
    patch.setattr(prepare_pocket, "efflite_features", fake_features)


@pytest.fixture(autouse=True)
def light(monkeypatch):
    lighten(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "pocket"
    with pytest.MonkeyPatch.context() as patch:
        lighten(patch)
        return directory, prepare_data.run(tiny_config(), directory=directory, command="eegrecon prepare-data")


def run(directory, *overrides, **kwargs):
    return prepare_data.run(tiny_config(*overrides), directory=directory, command="test", **kwargs)


@pytest.fixture
def own(made, tmp_path):
    """A copy of the finished set that a test may change."""
    shutil.copytree(made[0], tmp_path / "pocket")
    return tmp_path / "pocket"


def test_the_channels_of_the_brain_and_of_the_stores_are_the_same_list():
    assert CH_NAMES == THINGS_EEG2_CHANNELS


def test_store_truth_and_manifest(made):
    directory, manifest = made
    images = ImageSet.from_root(directory)
    assert (directory / "ATTRIBUTION.md").is_file()
    store = TrialStore(directory / "trials/sub-01", images)
    assert (store.unit, store.sfreq, store.tmin, store.n_times) == ("uV", 250.0, 0.0, 250)
    train, test = store.open("train", verify=True), store.open("test", verify=True)
    assert train.eeg.shape == (6, 2, 63, 250)
    assert test.eeg.shape == (2, 4, 63, 250)
    assert train.eeg.dtype == np.float16
    assert np.array_equal(train.image_index, images.train_index)
    assert test.session.tolist() == [[1, 2, 3, 4]] * 2
    truth = Truth.load(directory / "truth/sub-01")
    saved = np.load(directory / "truth/sub-01/noise_free_test.npy")
    np.testing.assert_allclose(saved, truth.noise_free(images.test_index), rtol=1e-3, atol=0.01)
    # The trials carry that very signal (a small gain, for six pictures alone set its scale): what is left is noise of
    # 7.3 uV over the square root of the repetitions.
    residual = test.average() - truth.noise_free(images.test_index)
    assert residual.std() == pytest.approx(7.3 / np.sqrt(4), rel=0.3)
    assert read_manifest(directory / "trials/sub-01").data == manifest.data
    assert manifest.outputs["train_eeg.npy"]["shape"] == [6, 2, 63, 250]
    assert not list(directory.rglob("*.partial"))


def test_a_finished_store_is_left_as_it_is_and_another_subject_is_added(own, monkeypatch):
    before = (own / "trials/sub-01/train_eeg.npy").stat()
    monkeypatch.setattr(prepare_pocket, "efflite_features", None)  # the cache must be enough
    manifest = run(own, "data.subjects=[1,2]")
    after = (own / "trials/sub-01/train_eeg.npy").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert manifest.data["subjects"] == [2]
    first, second = (np.load(own / f"trials/sub-0{s}/train_eeg.npy") for s in (1, 2))
    assert not np.array_equal(first, second)


def test_another_gain_is_refused_by_name_and_overwritten_on_demand(own):
    with pytest.raises(ArtifactError, match=r"brain\.gain.*--overwrite"):
        run(own, "brain.gain=9.0")
    old = np.load(own / "trials/sub-01/train_eeg.npy")
    run(own, "brain.gain=9.0", overwrite=True)
    assert not np.array_equal(old, np.load(own / "trials/sub-01/train_eeg.npy"))
    assert json.loads((own / "truth/sub-01/truth.json").read_text())["params"]["gain"] == 9.0


def test_other_pictures_are_refused_and_replaced_on_demand(own):
    with pytest.raises(DataError, match="another recipe"):
        run(own, "pictures.seed=5")
    run(own, "pictures.seed=5", overwrite=True)
    assert TrialStore(own / "trials/sub-01", ImageSet.from_root(own)).subject == 1


def test_a_killed_run_leaves_no_header_and_the_next_one_equals_an_uninterrupted_one(own, made, monkeypatch):
    shutil.rmtree(own / "trials")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_pocket.TrialStoreWriter, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            run(own)
    assert not (own / "trials/sub-01/manifest.json").exists()
    assert not (own / "trials/sub-01/header.json").exists()
    run(own)
    for name in ("train_eeg.npy", "test_eeg.npy", "header.json"):
        assert (own / "trials/sub-01" / name).read_bytes() == (made[0] / "trials/sub-01" / name).read_bytes()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: usage(1, 1, 1000))
    with pytest.raises(DataError, match=r"needs 0\.2 GB.*0\.0 GB free"):
        run(tmp_path / "data" / "pocket")
    assert not list(tmp_path.iterdir())


def test_other_sets_and_subjects_below_one_are_refused(tmp_path):
    cfg = tiny_config()
    for changed in (
        replace(cfg.data, set="things_eeg2"),
        replace(cfg.data, subjects=[0]),
        replace(cfg.data, subjects=[]),
    ):
        with pytest.raises(ConfigError, match="data"):
            prepare_data.run(replace(cfg, data=changed), directory=tmp_path / "x", command="test")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": Choice("pocket", {"path": "here"})}, "takes no args"),
        ({"brain": replace(tiny_config().brain, gain=0.0)}, r"brain\.gain must be above 0"),
    ],
)
def test_the_simulated_brain_refuses_what_it_does_not_know(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare_data.run(replace(tiny_config(), **changes), directory=tmp_path / "x", command="test")
    assert not (tmp_path / "x").exists()


def test_stores_made_before_there_were_sources_stay_up_to_date(made):
    # Frozen: the hash of the shipped config as it was before the key `source`; a change disowns every store there is.
    before = "e1de4aef400db0f2d6e18b33c8135667b9392226ea48c9645c9f0b7da5a481f6"
    for cfg, known in ((load("prepare-data", "pocket"), before), (tiny_config(), made[1].config_hash)):
        without = to_dict(cfg)
        del without["source"]
        assert config_hash(without) == known


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "pocket"])
def test_every_source_takes_what_the_stage_gives(name):
    facts = {"subject": 1, "images": None, "work": None}
    check_args(lookup(SOURCES, name), Choice(name, {"path": "somewhere"}), facts)
    with pytest.raises(ConfigError, match="'path' has no value"):
        check_args(lookup(SOURCES, name), Choice(name), facts)
