"""Converting a source: what is stored, what is refused, and what a kill leaves."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from eegrecon.data import ImageSet, TrialStore, conversion
from eegrecon.data.conversion import convert, store_bytes
from eegrecon.errors import DataError
from tests.builders_layouts import trials, write_pictures

CLAIM = {"from": "here"}


@dataclass
class Memory:
    """A source in memory that counts what is read, and can stop the program."""

    data: dict[str, np.ndarray]
    subject: int = 1
    sfreq: float = 250.0
    tmin: float = 0.0
    unit: str = "mvnn"
    stop_at: tuple[str, int] | None = None
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=lambda: {"file": {}})

    @property
    def ch_names(self):
        return tuple(f"E{i}" for i in range(self.data["train"].shape[2]))

    @property
    def n_times(self):
        return self.data["train"].shape[3]

    def counts(self):
        return {side: array.shape[:2] for side, array in self.data.items()}

    def image_index(self, partition):
        return np.array([4, 2, 0, 1, 3, 5]) if partition == "train" else np.array([7, 6])

    def session(self, partition):
        n, repetitions = self.counts()[partition]
        return np.tile(np.arange(repetitions), (n, 1)) + np.arange(n)[:, None]

    def read(self, partition, start, stop):
        self.reads.append((partition, start, stop))
        if self.stop_at == (partition, start):
            raise KeyboardInterrupt
        with np.errstate(over="ignore"):
            return self.data[partition][start:stop].astype(np.float32)


@pytest.fixture
def images(tmp_path):
    return write_pictures(tmp_path / "set")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(conversion, "BLOCK_BYTES", 2 * 4 * 5 * 20 * 8)  # two training pictures


def small():
    return trials(chans=5, samples=20)


def run(source, home, images, claim=CLAIM, **kwargs):
    convert(source, home, set_name="other", images=images, claim=claim, **kwargs)


def test_every_trial_is_stored_once_and_progress_counts_them(tmp_path, images):
    source, seen = Memory(small()), []
    run(source, tmp_path / "store", images, progress=seen.append)
    store = TrialStore(tmp_path / "store", images)
    assert sum(seen) == 6 * 4 + 2 * 5
    for side in ("train", "test"):
        part = store.open(side, verify=True)
        assert np.array_equal(part.eeg, source.data[side].astype(np.float32).astype(np.float16))
        assert np.array_equal(part.image_index, source.image_index(side))
        assert np.array_equal(part.session, source.session(side))
    assert source.reads == [("train", 0, 2), ("train", 2, 4), ("train", 4, 6), ("test", 0, 1), ("test", 1, 2)]
    assert store_bytes(source) == sum(store.open(side).eeg.nbytes for side in ("train", "test"))
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "header.json", "test_eeg.npy", "test_image_index.npy", "test_session.npy",
        "train_eeg.npy", "train_image_index.npy", "train_session.npy",
    ]  # fmt: skip


@pytest.mark.parametrize("stop_at", [("train", 0), ("train", 4), ("test", 0), ("test", 1)])
def test_an_interrupted_conversion_goes_on_where_it_was(tmp_path, images, stop_at):
    run(Memory(small()), tmp_path / "whole", images)
    with pytest.raises(KeyboardInterrupt):
        run(Memory(small(), stop_at=stop_at), tmp_path / "store", images)
    assert not (tmp_path / "store/header.json").exists()
    again, seen = Memory(small()), []
    run(again, tmp_path / "store", images, progress=seen.append)
    assert sum(seen) == 6 * 4 + 2 * 5
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes(), path.name
    if stop_at[0] == "test":
        assert ("train", 2, 4) not in again.reads  # nothing but the first block is looked at again


def test_rows_of_another_claim_are_thrown_away(tmp_path, images):
    old = Memory({side: array + 1 for side, array in small().items()}, stop_at=("test", 1))
    with pytest.raises(KeyboardInterrupt):
        run(old, tmp_path / "store", images)
    source = Memory(small())
    run(source, tmp_path / "store", images, claim={"from": "elsewhere"})
    stored = TrialStore(tmp_path / "store", images).open("train", verify=True).eeg
    assert np.array_equal(stored, source.data["train"].astype(np.float32).astype(np.float16))


def test_a_kill_between_the_files_keeps_the_finished_one(tmp_path, images):
    run(Memory(small()), tmp_path / "whole", images)
    with pytest.raises(KeyboardInterrupt):
        run(Memory(small(), stop_at=("test", 1)), tmp_path / "store", images)
    (tmp_path / "store/.train_eeg.npy.partial").rename(tmp_path / "store/train_eeg.npy")
    again = Memory(small())
    run(again, tmp_path / "store", images)
    assert ("train", 2, 4) not in again.reads
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "hold NaN at picture"),
        (np.inf, "hold an infinite value at"),
        (-np.inf, "hold an infinite value at"),
        (1e300, "hold an infinite value at"),
        (7e4, "hold the value 70000 at"),
        (-65505.0, "hold the value -65505 at"),
    ],
)
def test_values_that_cannot_be_stored_name_their_trial(tmp_path, images, side, value, words):
    data = small()
    data[side][1, 2, 3, 4] = value
    with pytest.raises(DataError, match=words) as caught:
        run(Memory(data), tmp_path / "store", images)
    name = images.records[2 if side == "train" else 6].image_id
    assert f"picture {name!r}, repetition 2, channel 'E3', 0.016 s" in str(caught.value)
    assert not list((tmp_path / "store").iterdir())


def test_the_largest_float16_is_stored(tmp_path, images):
    data = small()
    data["train"][1, 2, 3, 4] = 65504.0
    run(Memory(data), tmp_path / "store", images)
    assert np.load(tmp_path / "store/train_eeg.npy")[1, 2, 3, 4] == 65504.0


def test_constant_channels_are_refused(tmp_path, images):
    data = small()
    data["train"][:, :, 1] = np.arange(4)[:, None]  # another level in each repetition, but flat within
    with pytest.raises(DataError, match=r"channel\(s\) E1 of subject 1 \(file\) are constant in every train trial"):
        run(Memory(data), tmp_path / "store", images)
    assert not list((tmp_path / "store").iterdir())
    data = small()
    data["train"][:5, :, 1] = 0  # dead for most trials only
    run(Memory(data), tmp_path / "store", images)


def test_a_resumed_conversion_still_finds_a_constant_channel(tmp_path, images):
    data = small()
    data["test"][:, :, 1] = 0
    with pytest.raises(KeyboardInterrupt):
        run(Memory(data, stop_at=("test", 1)), tmp_path / "store", images)
    with pytest.raises(DataError, match="constant in every test trial"):
        run(Memory(data), tmp_path / "store", images)


def test_volts_are_refused(tmp_path, images):
    with pytest.raises(DataError, match=r"they look like volts or teslas"):
        run(Memory({side: array * 1e-6 for side, array in small().items()}), tmp_path / "store", images)


def test_a_full_disk_while_writing_is_one_sentence(tmp_path, images, monkeypatch):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion.TrialStoreWriter, "append", full)
    with pytest.raises(DataError, match="became full while the store was written"):
        run(Memory(small()), tmp_path / "store", images)
    assert not list((tmp_path / "store").iterdir())


def test_what_does_not_read_back_is_found(tmp_path, images, monkeypatch):
    original = conversion.TrialStoreWriter.close

    def damaged(self):
        path = self.path / ".test_eeg.npy.partial"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        original(self)

    monkeypatch.setattr(conversion.TrialStoreWriter, "close", damaged)
    with pytest.raises(DataError, match=r"test_eeg.npy.partial does not read back as it was written"):
        run(Memory(small()), tmp_path / "store", images)
    assert not list((tmp_path / "store").iterdir())


def test_the_store_says_where_its_trials_come_from(tmp_path, images):
    run(Memory(small(), preprocessing={"mvnn": "yes"}), tmp_path / "store", images)
    header = json.loads((tmp_path / "store/header.json").read_text())
    assert header["preprocessing"] == {"mvnn": "yes"}
    assert header["sources"] == {"file": {}, "images_sha256": images.sha256}
    assert ImageSet.from_root(tmp_path / "set").sha256 == images.sha256
