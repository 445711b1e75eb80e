"""The restricted reader: real pickles come out right, hostile ones are refused by name, nothing ever runs."""

import collections
import io
import os
import pickle
import pickletools
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch

from eegrecon.data.pickles import ArrayRef, map_rows, read_pickle
from eegrecon.errors import DataError

RNG = np.random.default_rng(0)
CANARY = "EEGRECON_PICKLE_RAN"
ARRAYS = {
    "float64": RNG.normal(size=(4, 3, 5)),
    "float32": RNG.normal(size=(7,)).astype(np.float32),
    "float16": RNG.normal(size=(2, 6)).astype(np.float16),
    "big_endian": RNG.normal(size=(3, 2)).astype(">f8"),
    "fortran": np.asfortranarray(RNG.normal(size=(3, 4, 2))),
    "int": np.arange(6, dtype=np.int16).reshape(2, 3),
    "uint8": np.arange(6, dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "complex": np.array([1 + 2j, 3j], dtype=np.complex64),
    "text": np.array(["Fp1", "Oz", "PO10"]),
    "bytes": np.array([b"a", b"bcd"]),
    "objects": np.array(["Fp1", None, 3], dtype=object),
    "empty": np.empty((0, 4)),
    "scalar": np.array(2.5),
    "number": np.float64(0.25),
}


def same(found, expected):
    found = found.map() if isinstance(found, ArrayRef) else found
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def written(tmp_path, value, protocol=4, name="a.pkl"):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.fixture(autouse=True)
def nothing_runs():
    os.environ.pop(CANARY, None)
    yield
    assert CANARY not in os.environ


@pytest.mark.parametrize("inline_bytes", [1 << 20, 0], ids=["inline", "mapped"])
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_kind_and_protocol(tmp_path, name, protocol, inline_bytes):
    path = written(tmp_path, {"data": ARRAYS[name], "again": ARRAYS[name]}, protocol)
    if protocol < 3 and inline_bytes == 0 and name in ("text", "objects", "bytes", "number"):
        inline_bytes = 64  # names themselves are texts there
    found = read_pickle(path, inline_bytes=max(inline_bytes, 64) if name != "float64" else inline_bytes or 64)
    same(found["data"], ARRAYS[name])
    assert found["again"] is found["data"]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(tmp_path, protocol):
    value = {
        "ch_names": ["Fp1", "Ö", ""], "n": [0, -1, 255, 65536, 2**70, -(2**70)], "x": [0.5, float("inf")],
        "flags": (True, False, None), "nested": {"a": ({"b": [1, (2, 3, 4, 5)]},)}, "set": {1, 2}, "raw": b"\x00\xff",
        "ordered": collections.OrderedDict(a=1), "frozen": frozenset("ab"), "buffer": bytearray(b"xy"),
    }  # fmt: skip
    if protocol < 4:
        value.pop("frozen")
    assert read_pickle(written(tmp_path, value, protocol)) == {**value, "ordered": {"a": 1}, "buffer": b"xy"}


def test_a_list_that_contains_itself(tmp_path):
    value = [1]
    value.append(value)
    found = read_pickle(written(tmp_path, value))
    assert found[1] is found


def test_large_arrays_stay_in_the_file_and_rows_come_alone(tmp_path):
    data = RNG.normal(size=(10, 4, 50))
    for protocol in (3, 4, 5):
        path = written(tmp_path, {"eeg": data, "small": data[:1, :1]}, protocol)
        found = read_pickle(path, inline_bytes=1000)
        assert isinstance(found["eeg"], ArrayRef)
        assert isinstance(found["small"], np.ndarray)
        assert found["eeg"].nbytes == data.nbytes
        assert not found["eeg"].map().flags.writeable
        np.testing.assert_array_equal(map_rows(found["eeg"], 3, 7), data[3:7])
        assert map_rows(found["eeg"], 10, 10).shape == (0, 4, 50)
    fortran = read_pickle(written(tmp_path, np.asfortranarray(data)), inline_bytes=1000)
    assert fortran.fortran
    np.testing.assert_array_equal(map_rows(fortran, 3, 7), data[3:7])


def test_a_dictionary_saved_by_numpy(tmp_path):
    value = {"raw_eeg_data": RNG.normal(size=(5, 4000)), "ch_names": ["Fp1", "stim"], "sfreq": 1000}
    np.save(tmp_path / "raw.npy", value)
    found = read_pickle(tmp_path / "raw.npy", inline_bytes=1000)
    same(found["raw_eeg_data"], value["raw_eeg_data"])
    assert found["ch_names"] == value["ch_names"]
    assert found["sfreq"] == 1000


def test_a_dictionary_saved_by_torch_in_its_zip(tmp_path):
    value = {"eeg": RNG.normal(size=(8, 2, 3, 20)).astype(np.float16), "img": np.array([["a/b.jpg"] * 2] * 8)}
    torch.save(value, tmp_path / "train.pt", pickle_protocol=5)
    found = read_pickle(tmp_path / "train.pt", inline_bytes=1000)
    assert isinstance(found["eeg"], ArrayRef)
    same(found["eeg"], value["eeg"])
    same(found["img"], value["img"])


def test_eight_gigabytes_are_located_not_read(tmp_path):
    """A sparse file of the published training file's size: memory and time stay those of its header."""
    data = np.zeros((1, 4, 63, 250))
    text = pickle.dumps({"preprocessed_eeg_data": data, "ch_names": ["Fp1"]}, protocol=4)
    size = 16540 * data.nbytes
    head, tail = text.split(b"B" + struct.pack("<I", data.nbytes) + bytes(data.nbytes))
    state = head.rindex(b"K\x01K\x04K\x3fK\xfa")  # the shape (1, 4, 63, 250)
    head = head[:state] + b"M" + struct.pack("<H", 16540) + head[state + 2 :]
    head = head[:2] + head[11:] if head[2:3] == pickle.FRAME else head
    path = tmp_path / "big.npy"
    with path.open("wb") as file:
        file.write(head + pickle.BINBYTES8 + struct.pack("<Q", size))
        file.seek(size, 1)
        file.write(tail)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_pickle(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert found["preprocessed_eeg_data"].shape == (16540, 4, 63, 250)
    assert found["preprocessed_eeg_data"].nbytes == 8_336_160_000
    assert map_rows(found["preprocessed_eeg_data"], 16539, 16540).shape == (1, 4, 63, 250)
    path.unlink()


class Evil:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


class WithState:
    def __init__(self):
        self.x = 1


def hostile():
    env = f"{CANARY}=1"
    yield "os.system", Evil(os.system, f"export {env}"), r"(posix|os)\.system"
    yield "eval", Evil(eval, f"__import__('os').environ.__setitem__('{CANARY}','1')"), r"builtin(s|__)\.eval"
    yield "nested", {"a": [np.zeros(3), {"b": Evil(os.putenv, "a", "b")}]}, r"posix\.putenv"
    yield "class", WithState(), r"test_pickles\.WithState"
    yield "tensor", torch.zeros(3), r"torch\.\S+"
    yield "numpy function", Evil(np.load, "x", None, True), r"numpy\S*\.load"
    yield "getattr", Evil(getattr, "a", "upper"), r"builtin(s|__)\.getattr"
    yield "records", np.zeros(3, dtype=[("a", "f8")]), "array of records|array of type"
    yield "dates", np.zeros(3, dtype="M8[s]"), "array of type|records"


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(("value", "named"), [pytest.param(v, n, id=i) for i, v, n in hostile()])
def test_what_is_no_data_is_refused_by_name(tmp_path, value, named, protocol):
    with pytest.raises(DataError, match=named) as error:
        read_pickle(written(tmp_path, value, protocol))
    assert "a.pkl" in str(error.value)
    assert "\n" not in str(error.value)


STREAMS = {
    "text global": (b"cos\nsystem\n(S'true'\ntR.", r"os\.system"),
    "inst": (b"(S'true'\nios\nsystem\n.", r"os\.system"),
    "obj": (b"(c__builtin__\nset\n(lo.", "object of a class|makes no sense"),
    "new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "object of a class"),
    "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0fcore.multiarray\x93.", r"numpy\.core\.multiarray"),
    "name from parts": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", r"os\.system"),
    "persistent id": (b"\x80\x02X\x01\x00\x00\x00aQ.", "persistent id"),
    "text persistent id": (b"Pabc\n.", "persistent id"),
    "extension": (b"\x80\x02\x82\x01.", "extension code"),
    "outside buffer": (b"\x80\x05\x97.", "buffer outside"),
    "unknown opcode": (b"\x80\x04\xfe.", "opcode"),
    "protocol 9": (b"\x80\x09N.", "protocol above 5"),
    "state of a dictionary": (b"\x80\x04}}b.", "state of a dict"),
    "call of a text": (b"\x80\x04\x8c\x01a)R.", "not a known constructor"),
    "memo of nothing": (b"\x80\x04h\x07.", "makes no sense"),
    "empty stack": (b"\x80\x04.", "makes no sense"),
    "a mark as value": (b"\x80\x04(.", "makes no sense"),
    "no hashable key": (b"\x80\x04}]Ns.", "makes no sense"),
    "ndarray called": (b"\x80\x04cnumpy\nndarray\n(K\x03tR.", "arguments that no recording has"),
    "gigantic text": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.", r"promises \d+ more bytes"),
    "negative length": (b"T" + struct.pack("<i", -5) + b".", "promises|makes no sense"),
    "deep": (b"\x80\x04" + b"]" * 3000 + b"a" * 2999 + b".", "more than 64 deep"),
    "nothing": (b"", "is empty"),
    "text": (b"hello, this is a letter", "opcode|makes no sense|truncated"),
}


@pytest.mark.parametrize(("stream", "message"), STREAMS.values(), ids=STREAMS)
def test_hand_made_streams_are_refused(tmp_path, stream, message):
    path = tmp_path / "b.pkl"
    path.write_bytes(stream)
    with pytest.raises(DataError, match=message):
        read_pickle(path)


def test_a_declared_shape_must_be_there(tmp_path):
    text = pickle.dumps(np.zeros((2, 3)), protocol=2)
    forged = text.replace(b"K\x02K\x03", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f")
    assert forged != text
    (tmp_path / "c.pkl").write_bytes(forged)
    with pytest.raises(DataError, match=r"shape \(2147483647, 2147483647\).*holds 48: it is damaged or forged"):
        read_pickle(tmp_path / "c.pkl")


@pytest.mark.parametrize("make", [pickle.dumps, None], ids=["pickle", "npy"])
def test_truncated_anywhere_is_one_sentence(tmp_path, make):
    value = {"eeg": np.arange(40.0).reshape(2, 20), "ch_names": ["Fp1", "Oz"], "n": 2**40}
    if make is None:
        np.save(buffer := io.BytesIO(), np.array(value, dtype=object), allow_pickle=True)
        whole = buffer.getvalue()
    else:
        whole = make(value, protocol=4)
    path = tmp_path / "d.npy"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        for inline_bytes in (1 << 20, 100):
            with pytest.raises(DataError, match=r"d\.npy"):
                read_pickle(path, inline_bytes=inline_bytes)


def test_random_damage_never_does_worse_than_a_sentence(tmp_path):
    whole = bytearray(pickle.dumps({"eeg": np.arange(40.0).reshape(2, 20), "ch_names": ["Fp1", "Oz"]}, protocol=4))
    path = tmp_path / "e.pkl"
    for _ in range(2000):
        damaged = whole.copy()
        for at in RNG.integers(0, len(whole), 2):
            damaged[at] = RNG.integers(256)
        path.write_bytes(damaged)
        try:
            read_pickle(path)
        except DataError:
            continue


def test_other_files(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"plain array of float64"):
        read_pickle(tmp_path / "plain.npy")
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
    with pytest.raises(DataError, match=r"without one uncompressed data\.pkl"):
        read_pickle(tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:50])
    with pytest.raises(DataError, match="truncated or damaged torch file"):
        read_pickle(tmp_path / "y.pt")
    torch.save({"img_features": torch.zeros(3, 4)}, tmp_path / "z.pt")
    with pytest.raises(DataError, match=r"torch\._utils\._rebuild_tensor_v2|persistent id"):
        read_pickle(tmp_path / "z.pt")
    with pytest.raises(DataError, match="cannot be read"):
        read_pickle(tmp_path / "absent.pkl")


def test_every_opcode_is_known_or_refused():
    from eegrecon.data.pickle_machine import STEPS

    every = {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
    assert every - set(STEPS) == {pickle.STOP}
