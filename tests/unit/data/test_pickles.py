"""The restricted reader on honest files: values equal those that Python reads, large arrays stay in place."""

import collections
import json
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from eegrecon.data.pickles import ArrayRef, map_rows, read_pickle
from eegrecon.errors import DataError

RNG = np.random.default_rng(0)
ARRAYS = {
    "float64": RNG.normal(size=(4, 3, 5)),
    "float32": RNG.normal(size=(7,)).astype(np.float32),
    "float16": RNG.normal(size=(2, 6)).astype(np.float16),
    "big_endian": RNG.normal(size=(3, 2)).astype(">f8"),
    "big_endian_int": np.arange(5, dtype=">i4"),
    "fortran": np.asfortranarray(RNG.normal(size=(3, 4, 2))),
    "strided": RNG.normal(size=(6, 4))[::2, ::-1],
    "int": np.arange(6, dtype=np.int16).reshape(2, 3),
    "uint8": np.arange(6, dtype=np.uint8),
    "uint64": np.array([2**64 - 1, 0], dtype=np.uint64),
    "bool": np.array([True, False, True]),
    "complex": np.array([1 + 2j, 3j], dtype=np.complex64),
    "text": np.array(["Fp1", "Oz", "PO10", "Ö"]),
    "text_big_endian": np.array(["Fp1", "Oz"], dtype=">U3"),
    "bytes": np.array([b"a", b"bcd"]),
    "objects": np.array(["Fp1", None, 3], dtype=object),
    "objects_2d": np.array([["a/b.jpg", "c"], ["d", "Ö"]], dtype=object, order="F"),
    "objects_0d": np.array({"a": [1, 2]}, dtype=object)[()],
    "empty": np.empty((0, 4)),
    "scalar": np.array(2.5),
    "number": np.float64(0.25),
    "text_number": np.str_("Oz"),
    "flag": np.bool_(True),
}


def same(found, expected):
    found = found.map() if isinstance(found, ArrayRef) else found
    assert type(found) is type(expected) or isinstance(found, np.memmap)
    if not isinstance(expected, np.ndarray | np.generic):
        assert found == expected
        return
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def written(tmp_path, value, protocol=4, name="a.pkl"):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("inline_bytes", [1 << 20, 0], ids=["inline", "mapped"])
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_kind_and_protocol(tmp_path, name, protocol, inline_bytes):
    path = written(tmp_path, {"data": ARRAYS[name], "again": ARRAYS[name]}, protocol)
    found = read_pickle(path, inline_bytes=inline_bytes)
    same(found["data"], ARRAYS[name])
    assert found["again"] is found["data"]
    numbers = isinstance(ARRAYS[name], np.ndarray) and ARRAYS[name].ndim and ARRAYS[name].size
    left = protocol >= 3 and inline_bytes == 0 and numbers and not ARRAYS[name].dtype.hasobject
    assert isinstance(found["data"], ArrayRef) == bool(left)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(tmp_path, protocol):
    value = {
        "ch_names": ["Fp1", "Ö", "", "'\"\\\n\t\0\x7f"], "n": [0, -1, 255, 65536, 2**70, -(2**70), 2**2100],
        "x": [0.5, 1e-300],
        "inf": float("-inf"), "flags": (True, False, None, 1, 0), "nested": {"a": ({"b": [1, (2, 3, 4, 5)]},)},
        "set": {1, "b"}, "frozen": frozenset("ab"), "raw": b"\x00\xff'", "ordered": collections.OrderedDict(a=1, b=[2]),
        "buffer": bytearray(b"xy"), "long": "é" * 70_000, "none": [(), [], {}, set(), frozenset(), b"", bytearray()],
        "keys": {1: 1, None: 2, False: 3, ("a", 1): 4, b"b": 5, 0.5: 6}, "dtype": np.dtype(">f4"),
        "many": [*range(3000)],
    }  # fmt: skip
    path = written(tmp_path, value, protocol)
    for inline_bytes in (0, 1 << 20):
        assert read_pickle(path, inline_bytes=inline_bytes) == {**value, "ordered": {"a": 1, "b": [2]}, "buffer": b"xy"}


def a_value(depth=0):
    kind = RNG.integers(7 if depth < 4 else 4)
    if kind == 0:
        return int(RNG.integers(-(2**40), 2**40)) >> int(RNG.integers(40))
    if kind == 1:
        return "".join(map(chr, RNG.integers(32, 0x1_0000 - 0x2800, RNG.integers(300)) % 0xD800))
    if kind == 2:
        return RNG.bytes(RNG.integers(300))
    if kind == 3:
        return float(RNG.normal())
    parts = [a_value(depth + 1) for _ in range(RNG.integers(6))]
    parts += parts[:1]  # memoised
    return {4: parts, 5: tuple(parts), 6: {f"k{i}": part for i, part in enumerate(parts)}}[kind]


def test_random_values_equal_what_python_reads(tmp_path):
    for i in range(120):
        value = [a_value() for _ in range(4)]
        path = written(tmp_path, value, i % 6)
        assert read_pickle(path, inline_bytes=(0, 100, 1 << 20)[i % 3]) == value


def test_numpy_scalars_are_keys(tmp_path):
    value = {np.str_("sub-01"): 1, np.int64(7): 2}
    assert read_pickle(written(tmp_path, value)) == value


def test_what_python_2_wrote(tmp_path):
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02\x85"
        b"cnumpy\ndtype\nq\x04U\x02f8K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x10" + np.array([1.5, -2.0]).tobytes() + b"tb"
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(b"\x80\x02}(U\x03eeg" + array + b"U\x04nameS'O\\xf6\\\\z\\'\\n'\nT\x02\x00\x00\x00abL12L\nu.")
    expected = pickle.loads(path.read_bytes(), encoding="latin1")
    found = read_pickle(path)
    assert list(found) == list(expected) == ["eeg", "name", "ab"]
    same(found["eeg"], expected["eeg"])
    assert found["name"] == expected["name"] == "Oö\\z'\n"
    assert found["ab"] == 12


def test_a_list_that_contains_itself(tmp_path):
    value = [1]
    value.append(value)
    found = read_pickle(written(tmp_path, value))
    assert found[1] is found


def test_large_arrays_stay_in_the_file_and_rows_come_alone(tmp_path):
    data = RNG.normal(size=(10, 4, 50))
    for protocol in (3, 4, 5):
        for kind in (data, data.astype(">f4"), np.asfortranarray(data), np.asfortranarray(data[..., 0].astype("f2"))):
            path = written(tmp_path, {"eeg": kind, "small": kind[:1, :1]}, protocol)
            found = read_pickle(path, inline_bytes=kind.nbytes - 1)
            assert isinstance(found["eeg"], ArrayRef)
            assert isinstance(found["small"], np.ndarray)
            assert found["eeg"].nbytes == kind.nbytes
            assert found["eeg"].fortran == (not kind.flags.c_contiguous)
            assert not found["eeg"].map().flags.writeable
            for start, stop in ((3, 7), (0, 10), (9, 10), (10, 10)):
                same(map_rows(found["eeg"], start, stop), kind[start:stop])
            assert isinstance(read_pickle(path, inline_bytes=kind.nbytes)["eeg"], np.ndarray)


def test_rows_that_are_not_there_or_no_longer(tmp_path):
    ref = read_pickle(written(tmp_path, np.arange(40.0)), inline_bytes=0)
    for start, stop in ((-1, 3), (3, 41), (4, 3)):
        with pytest.raises(ValueError, match="rows"):
            map_rows(ref, start, stop)
    ref.path.write_bytes(ref.path.read_bytes()[:200])
    for read in (ref.map, lambda: map_rows(ref, 0, 40)):
        with pytest.raises(DataError, match=r"a\.pkl can no longer be read"):
            read()
    ref.path.unlink()
    for read in (ref.map, lambda: map_rows(ref, 0, 40)):
        with pytest.raises(DataError, match=r"a\.pkl can no longer be read \(.*No such file"):
            read()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_dictionary_saved_by_numpy(tmp_path, protocol):
    value = {"raw_eeg_data": RNG.normal(size=(5, 4000)), "ch_names": ["Fp1", "stim"], "sfreq": 1000}
    np.save(tmp_path / "raw.npy", value)  # protocol 4 since numpy 2, 3 before
    whole = (tmp_path / "raw.npy").read_bytes()
    header = whole[: whole.index(b"\x80\x04")]
    (tmp_path / "raw.npy").write_bytes(header + pickle.dumps(np.array(value, dtype=object), protocol=protocol))
    found = read_pickle(tmp_path / "raw.npy", inline_bytes=1000)
    assert isinstance(found["raw_eeg_data"], ArrayRef)
    same(found["raw_eeg_data"], value["raw_eeg_data"])
    assert found["ch_names"] == value["ch_names"]
    assert found["sfreq"] == 1000


def test_a_list_of_names_saved_by_numpy(tmp_path):
    names = np.array([["Fp1", "Oz"], ["a", None]], dtype=object)
    np.save(tmp_path / "names.npy", names)
    same(read_pickle(tmp_path / "names.npy"), names)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_dictionary_saved_by_torch_in_its_zip(tmp_path, protocol):
    value = {"eeg": RNG.normal(size=(8, 2, 3, 20)).astype(np.float16), "img": np.array([["a/b.jpg"] * 2] * 8)}
    torch.save(value, tmp_path / "train.pt", pickle_protocol=protocol)
    found = read_pickle(tmp_path / "train.pt", inline_bytes=1000)
    assert isinstance(found["eeg"], ArrayRef) == (protocol > 2)  # protocol 2 hides bytes in text
    same(found["eeg"], value["eeg"])
    same(found["img"], value["img"])


SHAPE, SIZE = (16540, 4, 63, 250), 16540 * 4 * 63 * 250 * 8


def split_around_a_hole(protocol):
    """The published training file's pickle before and after its numbers: made small, its shape and size enlarged."""
    data = np.zeros((1, *SHAPE[1:]))
    text = pickle.dumps({"preprocessed_eeg_data": data, "ch_names": ["Fp1"]}, protocol=protocol)
    opcode = (b"\x96" + struct.pack("<Q", data.nbytes)) if protocol == 5 else (b"B" + struct.pack("<I", data.nbytes))
    enlarged = (pickle.BYTEARRAY8 if protocol == 5 else pickle.BINBYTES8) + struct.pack("<Q", SIZE)
    parts = text.split(opcode + bytes(data.nbytes))
    parts = [
        part.replace(b"(K\x01K\x04K\x3fK\xfa", b"(M" + struct.pack("<H", SHAPE[0]) + b"K\x04K\x3fK\xfa")
        for part in parts
    ]
    return parts[0] + enlarged, parts[1]


def as_zip(head, tail):
    """The same in a zip as torch writes it, with the 64-bit sizes that more than 4 GB need (PKWARE's APPNOTE 4.3)."""
    name, size = b"train/data.pkl", len(head) + SIZE + len(tail)
    wide = struct.pack("<HHQQ", 1, 16, size, size)
    entry = struct.pack("<HHHHHIIIHH", 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, len(name), len(wide))
    start = b"PK\x03\x04" + entry + name + wide
    at = len(start) + size
    central = b"PK\x01\x02" + b"-\0" + entry + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name + wide
    end = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, len(central), at)
    end += b"PK\x06\x07" + struct.pack("<IQI", 0, at + len(central), 1)
    end += b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), 2**32 - 1, 0)
    return start + head, tail + central + end


SCRIPT = """
import json, sys, time
from pathlib import Path
from eegrecon.data.pickles import map_rows, read_pickle

def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0])  # KiB; ru_maxrss would begin with the parent's

before, began = peak(), time.perf_counter()
ref = read_pickle(Path(sys.argv[1]))["preprocessed_eeg_data"]
rows = map_rows(ref, ref.shape[0] - 10, ref.shape[0])
seconds = time.perf_counter() - began
print(json.dumps([ref.shape, ref.nbytes, str(ref.dtype), rows.tolist()[9][3][62][248:], seconds, peak() - before]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["pickle 4", "pickle 5", "torch"])
def test_eight_gigabytes_are_located_not_read(tmp_path, kind):
    """A sparse file of the published training file's size: memory and time stay those of its header and ten rows."""
    head, tail = split_around_a_hole(5 if kind == "pickle 5" else 4)
    if kind == "torch":
        head, tail = as_zip(head, tail)
    path = tmp_path / "big.npy"
    with path.open("wb") as file:
        file.write(head)
        file.seek(SIZE - 8, 1)
        file.write(struct.pack("<d", 0.5) + tail)
    run = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=False, timeout=60)
    path.unlink()
    assert run.returncode == 0, run.stderr
    shape, nbytes, dtype, last, seconds, kib = json.loads(run.stdout)
    assert (tuple(shape), nbytes, dtype, last) == (SHAPE, SIZE, "float64", [0.0, 0.5])
    assert seconds < 5
    assert kib < 60_000  # ten rows are 5 MB, and their numbers as a list of floats 20 MB


def test_other_files(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"plain array of float64"):
        read_pickle(tmp_path / "plain.npy")
    np.save(tmp_path / "fields.npy", np.zeros(3, dtype=[("a", "f8"), ("b", "O")]))
    with pytest.raises(DataError, match=r"type 'V16', where plain numbers"):
        read_pickle(tmp_path / "fields.npy")
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
    with pytest.raises(DataError, match=r"without one uncompressed data\.pkl"):
        read_pickle(tmp_path / "x.pt")
    np.savez(tmp_path / "y.npz", a=np.zeros(3))
    with pytest.raises(DataError, match=r"without one uncompressed data\.pkl"):
        read_pickle(tmp_path / "y.npz")
    torch.save({"img_features": torch.zeros(3, 4)}, tmp_path / "z.pt")
    with pytest.raises(DataError, match=r"z\.pt wants to use torch\._utils\._rebuild_tensor_v2"):
        read_pickle(tmp_path / "z.pt")
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"old\.pt was written by torch\.save in the format before torch 1\.6"):
        read_pickle(tmp_path / "old.pt")
    with pytest.raises(DataError, match=r"absent\.pkl cannot be read \(No such file"):
        read_pickle(tmp_path / "absent.pkl")
    with pytest.raises(DataError, match="is no regular file"):
        read_pickle(tmp_path)


def test_every_opcode_is_known_or_refused():
    from eegrecon.data.pickle_machine import STEPS

    every = {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
    assert every - set(STEPS) == {pickle.STOP}
