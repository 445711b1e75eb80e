"""The restricted reader on forged and damaged files: nothing explodes, and one sentence says what is wrong."""

import contextlib
import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from eegrecon.data.pickles import read_pickle
from eegrecon.errors import DataError
from tests.pickle_watch import read_watched, refused

RNG = np.random.default_rng(1)
NDARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
U1 = b"(cnumpy\ndtype\nVu1\n\x85R"  # a dtype, with a mark before it
FROM_BYTES = b"cnumpy.core.numeric\n_frombuffer\n"
FORGED = {
    "NEWOBJ of an allowed name": (b"\x80\x02cnumpy\nndarray\n)\x81.", r"make an object of numpy\.ndarray"),
    "OBJ of an allowed name": (b"(cbuiltins\nset\no.", r"make an object of builtins\.set"),
    "ndarray called": (b"cnumpy\nndarray\n(K\x03tR.", r"calls numpy\.ndarray with arguments"),
    "ndarray returned": (b"cnumpy\nndarray\n.", r"function or class numpy\.ndarray"),
    "encode to another codec": (b"c_codecs\nencode\n(Va\nVzip\ntR.", r"calls _codecs\.encode"),
    "subclass": (NDARRAY.replace(b"ndarray", b"matrix") + b".", r"numpy\.matrix"),
    "name with escape codes": (b"cos\x1b[2J\nsystem\n.", r"'os\\x1b\[2J\.system'"),
    "name over two lines": (b"\x80\x04\x8c\x04os\n\n\x8c\x06system\x93.", r"'os\\n\\n\.system'"),
    "name of 60,000 letters": (b"c" + b"a" * 60_000 + b"\nb\n.", "wants to use aaa"),
    "name that is a number": (b"\x80\x04K\x01K\x02\x93.", "whose name is no text"),
    "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0fcore.multiarray\x93.", r"numpy\.core\.multiarray"),
    "persistent id": (
        b"\x80\x02(X\x07\x00\x00\x00storageX\x03\x00\x00\x00cputQ.", "persistent id, as torch's tensors do",
    ),
    "text persistent id": (b"Pabc\n.", "persistent id"),
    "outside buffer": (b"\x80\x05\x97.", "buffer outside"),
    "unknown opcode": (b"\x80\x04\xfe.", r"opcode b'\\xfe'"),
    "protocol 9": (b"\x80\x09N.", "protocol above 5"),
    "state of a dictionary": (b"\x80\x04}}b.", "state of a dict"),
    "call of a text": (b"\x80\x04\x8c\x01a)R.", "not a known constructor"),
    "arguments in a list": (b"\x80\x04cnumpy\ndtype\n]R.", "not a known constructor"),
    "records": (b"cnumpy\ndtype\n(VV16\ntR.", "type 'V16', where plain numbers"),
    "dtype by a comma list": (b"cnumpy\ndtype\n(Vf8,f8\ntR.", "type 'f8,f8'"),
    "dtype with fields in its state": (
        b"cnumpy\ndtype\n(Vf8\ntR(K\x03V<\nNV" + b"a\n}K\x01K\x01K\x00tb.", "array of records",
    ),
    "numbers without a byte order": (b"cnumpy\ndtype\n(Vf8\ntR(K\x03V|\nNNNK\x01K\x01K\x00tb.", "an unknown kind"),
    "text never ends": (b"S'abc", "is truncated or damaged: at byte 1 it promises"),
    "memo of nothing": (b"\x80\x04h\x07.", r"makes no sense before byte 4 \(KeyError"),
    "empty stack": (b"\x80\x04.", "makes no sense before byte 3 .IndexError"),
    "a mark as value": (b"\x80\x04(.", "makes no sense"),
    "no mark": (b"\x80\x04Nt.", "makes no sense"),
    "list as a key": (b"\x80\x04}]Ns.", "a list as a key"),
    "array as a key": (b"\x80\x04}" + NDARRAY + b"Ns.", "a ArrayParts as a key"),
    "list in a set": (b"\x80\x04\x8f(]\x90.", "a list as a key"),
    "number of letters": (b"Iabc\n.", "makes no sense"),
    "number of 16 MB": (b"L" + b"9" * (1 << 24) + b"L\n.", "line of more than 16 MB"),
    "number of 5000 digits": (b"L" + b"9" * 5000 + b"L\n.", "makes no sense"),
    "number of 64 MB": (b"\x80\x04\x8b" + struct.pack("<i", 1 << 26) + bytes(1 << 10), "number of 67108864 bytes"),
    "number of a negative size": (b"\x80\x04\x8b" + struct.pack("<i", -1) + b".", "promises -1 more"),
    "negative length": (b"T" + struct.pack("<i", -5) + b".", "promises -5"),
    "text of 4 EB": (
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.", "byte 11 it promises 4611686018427387904 more",
    ),
    "bytes of 16 EB": (
        b"\x80\x04\x8e" + b"\xff" * 8 + b"x.", "promises 18446744073709551615 more bytes, but 2 are left",
    ),
    "bytearray of 16 EB": (b"\x80\x05\x96" + b"\xff" * 8 + b"x.", "promises 18446744073709551615 more"),
    "string full of signs": (b"S" + b"-" * 60_000 + b"1\n.", "no quotes"),
    "string full of brackets": (b"S'" + b"[" * 60_000 + b"\n.", "no quotes"),
    "text that is no latin-1": (b"cnumpy.core.multiarray\nscalar\n" + U1[1:] + b"V\\u1234\n\x86R.", "makes no sense"),
    "empty huge shape": (
        FROM_BYTES + b"(C\x00" + U1[1:] + b"(K\x00\x8a\x0a" + b"\x01" * 10 + b"tVC\ntR.", "impossible shape",
    ),
    "empty large shape": (
        FROM_BYTES + b"(C\x00" + U1[1:] + b"(K\x00" + b"J\xff\xff\xff\x7f" * 3 + b"tVC\ntR.", "impossible",
    ),
    "negative shape": (
        FROM_BYTES + b"(C\x01a" + U1[1:] + b"(J\xff\xff\xff\xffJ\xff\xff\xff\xfftVC\ntR.", "impossible shape",
    ),
    "shape of texts": (FROM_BYTES + b"(C\x01a" + U1[1:] + b"(Va\ntVC\ntR.", "impossible shape"),
    "shape of 40 axes": (FROM_BYTES + b"(C\x01a" + U1[1:] + b"(" + b"K\x01" * 40 + b"tVC\ntR.", "impossible shape"),
    "shape of huge numbers": (
        FROM_BYTES + b"(C\x01a" + U1[1:] + b"(\x8b" + struct.pack("<i", 1000) + b"\x01" * 1000 + b"tVC\ntR.",
        "impossible shape",
    ),
    "objects in bytes": (FROM_BYTES + b"(C\x08aaaaaaaacnumpy\ndtype\nVO\n\x85R(K\x01tVC\ntR.", "needs 1 objects"),
    "array without numbers": (NDARRAY + b".", "array without its numbers"),
    "array filled twice": (
        NDARRAY + (b"(K\x01(K\x01t" + U1[1:] + b"\x89C\x01atb") * 2 + b".", "array of records or an unknown kind",
    ),
    "objects that grow after they were counted": (
        NDARRAY + b"(K\x01(K\x01tcnumpy\ndtype\nVO\n\x85R\x89]q\x07Natbh\x07Na0.",
        r"makes no sense before .*cannot reshape",
    ),
    "objects that hold their array": (
        NDARRAY + b"q\x06(K\x01(K\x01tcnumpy\ndtype\nVO\n\x85R\x89](h\x06etb.", "more than 64 deep",
    ),
    "3000 lists in each other": (b"\x80\x04" + b"]" * 3000 + b"a" * 2999 + b".", "more than 64 deep"),
    "30,000 tuples in each other": (b"\x80\x04)" + b"\x85" * 30_000 + b".", "more than 64 deep"),
    "30,000 marks": (b"\x80\x04" + b"(" * 30_000 + b".", "makes no sense"),
    "30,000 tuples as a key": (b"\x80\x04})" + b"\x85" * 30_000 + b"Ns.", "a tuple as a key"),
    "2^60 tuples as a key": (b"\x80\x04})" + b"2\x86" * 60 + b"Ns.", "a tuple as a key"),
    "2^60 tuples in a set": (b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90.", "a tuple as a key"),
    "2^60 tuples, frozen": (b"\x80\x04()" + b"2\x86" * 60 + b"\x91.", "a tuple as a key"),
    "2^60 tuples in an ordered dictionary": (
        b"\x80\x04ccollections\nOrderedDict\n(]]()" + b"2\x86" * 60 + b"NeatR.", "a tuple as a key",
    ),
    "a long tuple as a key, often": (
        b"\x80\x04}(" + b"N" * 1000 + b"tq\x000" + b"h\x00Ns" * 1000 + b".", "a tuple as a key",
    ),
    "one array 20,000 times": (
        FROM_BYTES + b"q\x000B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x010(h\x01" + U1[1:] + b"J"
        + struct.pack("<i", 1 << 20) + b"\x85VC\ntq\x020](" + b"h\x00h\x02R" * 20_000 + b"e.", "4 times its own size",
    ),
    "one text encoded 20,000 times": (
        b"c_codecs\nencode\nq\x000X" + struct.pack("<I", 1 << 16) + b"a" * (1 << 16) + b"Vlatin1\n\x86q\x010]("
        + b"h\x00h\x01R" * 20_000 + b"e.", "4 times its own size",
    ),
    "one set 2,000 times": (
        b"cbuiltins\nset\nq\x000](" + b"K\x01" * 10_000 + b"e\x85q\x010](" + b"h\x00h\x01R" * 2000 + b"e.",
        "4 times its own",
    ),
    "one list as 2,000 arrays": (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x000(cnumpy\nndarray\n(K\x00tC\x01btq\x010(K\x01(M\x10\x27tcnumpy\ndtype\n"
        b"VO\n\x85R\x89](" + b"K\x01" * 10_000 + b"etq\x020](" + b"h\x00h\x01Rh\x02b" * 2000 + b"e.",
        "4 times its own size",
    ),
    "nothing": (b"", "is empty"),
    "text": (b"hello, this is a letter", "opcode|makes no sense|truncated"),
    "zeros": (bytes(5000), r"opcode b'\\x00'"),
    "web page": (b"<!DOCTYPE html><html>\n", "is a web page"),
    "zip of another kind": (b"PK\x03\x04" + bytes(100), "truncated or damaged torch file"),
    "npy without a header": (b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O'  \n", "no readable .npy file"),
    "npy of version 9": (b"\x93NUMPY\x09\x00\x10\x00", "no readable .npy file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_streams_are_refused_quickly_in_little_memory(tmp_path, name):
    stream, message = FORGED[name]
    path = tmp_path / "b.pkl"
    path.write_bytes(stream)
    began = time.process_time()
    tracemalloc.start()
    try:
        refused(path, message)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 10  # tracing is slow; what this guards against takes hours
    assert peak < 8e6 + 150 * len(stream)


def test_what_grows_within_reason_is_read(tmp_path):
    """Sharing is no attack: 60 levels of pairs of the level below are 60 lists."""
    path = tmp_path / "c.pkl"
    path.write_bytes(b"\x80\x04]" + b"q\x00](h\x00h\x00e" * 60 + b".")
    found, depth = read_watched(path), 0
    while found:
        assert found[0] is found[1]
        found, depth = found[0], depth + 1
    assert depth == 60


def test_too_many_values_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("eegrecon.data.pickle_machine.MAX_STEPS", 1000)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(list(range(900))))
    assert len(read_watched(tmp_path / "a.pkl")) == 900
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(list(range(1001))))
    refused(tmp_path / "a.pkl", "more than 1,000 values")


def test_an_array_in_too_much_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("eegrecon.data.pickle_source.MAX_TEXT", 1 << 20)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(np.zeros(1 << 18), protocol=2))
    refused(tmp_path / "a.pkl", "as one text or byte string.*save it again with protocol 4")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_declared_shape_must_be_there(tmp_path, protocol):
    text = pickle.dumps(np.zeros((2, 3)), protocol=protocol)
    path = tmp_path / "c.pkl"
    for new, shape in ((b"K\x02K\x04", "2, 4"), (b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f", "2147483647, 2147483647")):
        forged = text.replace(b"K\x02K\x03", new)
        assert forged != text
        path.write_bytes(forged)
        refused(path, rf"shape \({shape}\) and type float64.*holds 48: it is damaged or forged")


@pytest.mark.parametrize("protocol", [0, 4])
def test_a_zip_entry_is_not_left(tmp_path, protocol):
    """What follows `data.pkl` in the file is no part of it, and it cannot end after the file."""
    whole = pickle.dumps(["a" * 50, 1], protocol)
    path = tmp_path / "a.pt"
    for cut in range(len(whole)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", whole[:cut])
            archive.writestr("a/data/0", whole[cut:] * 3)
        refused(path, "truncated or damaged: at byte")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", whole)
    assert read_watched(path) == ["a" * 50, 1]
    size = struct.pack("<I", len(whole))
    central = path.read_bytes().rindex(b"PK\x01\x02")
    path.write_bytes(path.read_bytes()[:central] + path.read_bytes()[central:].replace(size, b"\0\0\0\1"))
    refused(path, r"data\.pkl should end at byte 16777256 of \d{3}\):")


def small_files():
    value = {
        "eeg": np.arange(40.0).reshape(2, 20),
        "ch_names": ["Fp1", "Oz"],
        "n": 2**40,
        "o": np.array(["a", 1], dtype=object),
    }
    npy, zipped = io.BytesIO(), io.BytesIO()
    np.save(npy, np.array(value, dtype=object), allow_pickle=True)
    torch.save(value, zipped, pickle_protocol=5)
    return {
        **{f"pickle {i}": pickle.dumps(value, i) for i in range(6)},
        "npy": npy.getvalue(),
        "torch": zipped.getvalue(),
    }


@pytest.mark.parametrize("kind", small_files())
def test_truncated_anywhere_is_one_sentence(tmp_path, kind):
    whole = small_files()[kind]
    path = tmp_path / "d.npy"
    path.write_bytes(whole)
    read_pickle(path)
    for cut in reversed(range(len(whole))):
        os.truncate(path, cut)
        with pytest.raises(DataError, match=r"d\.npy") as error:
            read_watched(path, inline_bytes=100 if cut % 2 else 1 << 20)
        text = str(error.value)
        if kind.startswith("pickle") and cut:
            assert "is truncated or damaged: at byte " in text
            at, missing, left = (int(word) for word in text.replace(",", "").split() if word.lstrip("-").isdigit())
            assert at + left == cut
            assert missing > left
    assert "is empty" in text


@pytest.mark.parametrize("kind", small_files())
def test_random_damage_never_does_worse_than_a_sentence(tmp_path, kind):
    whole = small_files()[kind]
    path = tmp_path / "e.pkl"
    path.write_bytes(whole)
    refusals = 0
    with path.open("r+b", buffering=0) as file:
        for _ in range(400):
            places = RNG.integers(0, len(whole), int(RNG.integers(1, 4)))
            for at in places:
                file.seek(at)
                file.write(RNG.bytes(1))
            with contextlib.suppress(DataError):
                read_watched(path, inline_bytes=int(RNG.choice([0, 1 << 20])))
                refusals -= 1
            refusals += 1
            for at in places:
                file.seek(at)
                file.write(whole[at : at + 1])
    assert refusals > 20
