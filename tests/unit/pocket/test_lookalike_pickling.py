"""The pickle writer: byte for byte what Python's own pickler writes, and exactly the published sizes."""

import io
import pickle

import numpy as np
import pytest
import torch

from eegrecon.pocket.forward import CH_NAMES
from eegrecon.pocket.lookalike import pickling
from eegrecon.pocket.lookalike.eeg import preprocessed_parts
from eegrecon.pocket.lookalike.pickling import NEW_NUMPY, LargeArray, npy_object_parts, pickle_parts, size_of

VALUES = {
    "file": {
        "data": np.arange(30000.0).reshape(3, 100, 100),  # beyond 64 KiB: outside of frames
        "ch_names": list(CH_NAMES),
        "times": np.linspace(-0.2, 0.996, 300),
        "ch_types": ["eeg"] * 63 + ["stim"],
        "sfreq": 1000,
        "highpass": 0.01,
    },
    "arrays": {
        "eeg": np.ones((5, 4, 63, 250), np.float16),
        "img": np.array([["a/b.jpg", "c/long_name.jpg"]] * 3),
        "label": np.zeros((3, 2), np.int64),
        "big_label": np.ones((3000, 20), np.int64),
    },
    "scalars": [-5, 0, 255, 256, 65535, 65536, 2**40, -(2**31), 1.5, None, True, (), (1,), (1, 2, 3, 4), {"k": [3]}],
    "many": [f"name {i}" for i in range(20000)],  # several frames, several batches, long memo numbers
    "empty": {"list": [], "dict": {}},
}


def joined(parts) -> bytes:
    file = io.BytesIO()
    pickling.write_parts(file, parts)
    assert file.tell() == size_of(parts)
    return file.getvalue()


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("name", VALUES)
def test_bytes_are_those_of_pythons_pickler(name, protocol):
    assert joined(pickle_parts(VALUES[name], protocol, NEW_NUMPY)) == pickle.dumps(VALUES[name], protocol=protocol)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("n", [10, 30000])  # within a frame, and outside
def test_a_streamed_array_is_the_same_as_a_held_one(n, protocol):
    array = np.arange(float(n))
    streamed = LargeArray(array.shape, array.dtype, lambda file: file.write(array.tobytes()))
    assert joined(pickle_parts({"a": streamed, "b": 1}, protocol)) == joined(
        pickle_parts({"a": array, "b": 1}, protocol)
    )


def test_numpy_1_names_load_too():
    made = joined(pickle_parts(VALUES["file"], 4))
    assert b"numpy.core.multiarray" in made
    assert b"_core" not in made
    loaded = pickle.loads(made)
    np.testing.assert_array_equal(loaded["data"], VALUES["file"]["data"])
    assert loaded["ch_types"] == VALUES["file"]["ch_types"]


def no_write(file):
    raise AssertionError("nothing is written to know a size")


@pytest.mark.parametrize(("shape", "size"), [((16540, 4), 8_336_163_007), ((200, 80), 2_016_003_002)])
def test_published_sizes_to_the_byte(shape, size):
    assert size_of(preprocessed_parts(*shape, no_write)) == size  # shared/facts/atm.md 1.3


def test_object_npy_is_what_np_save_writes():
    file = io.BytesIO()
    np.save(file, VALUES["file"], allow_pickle=True)
    made = joined(npy_object_parts(VALUES["file"]))
    assert made[:128] == file.getvalue()[:128]
    assert made[128:130] == b"\x80\x03"  # numpy 1's protocol
    again = np.load(io.BytesIO(made), allow_pickle=True).item()
    np.testing.assert_array_equal(again["data"], VALUES["file"]["data"])
    holder = np.empty((), dtype=object)
    holder[()] = VALUES["file"]
    assert joined(npy_object_parts(VALUES["file"], NEW_NUMPY))[128:] == pickle.dumps(holder, protocol=3)


@pytest.mark.filterwarnings("ignore:numpy.core.numeric is deprecated:DeprecationWarning")
def test_torch_reads_the_zip(tmp_path):
    path = pickling.write_torch_zip(tmp_path / "train.pt", VALUES["arrays"])
    loaded = torch.load(path, weights_only=False)
    assert list(loaded) == list(VALUES["arrays"])
    for name, array in VALUES["arrays"].items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype


def test_a_wrong_number_of_bytes_is_a_bug_that_shows(tmp_path):
    short = LargeArray((10000,), np.dtype(np.float64), lambda file: file.write(b"\0" * 79999))
    with pytest.raises(RuntimeError, match="got 79999 bytes"):
        pickling.write_file(tmp_path / "x.npy", pickle_parts(short, 4))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written():
    beyond = LargeArray((1 << 29,), np.dtype(np.float64), no_write)
    with pytest.raises(ValueError, match="its end is 4 GiB"):
        pickle_parts(beyond, 3)
    assert b"\x8e" + (1 << 32).to_bytes(8, "little") in pickle_parts(beyond, 4)
    with pytest.raises(ValueError, match="a set cannot"):
        pickle_parts({1}, 4)
    with pytest.raises(ValueError, match="protocol 2"):
        pickle_parts(1, 2)
