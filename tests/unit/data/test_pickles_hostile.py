"""The restricted reader on pickles that run things: nothing runs, and the message names what wanted to.

That they really attack is proved too: Python's own unpickler runs each of them and leaves a file behind.
"""

import ast
import contextlib
import copyreg
import os
import pickle
import pty
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import eegrecon.data
from tests.pickle_watch import refused


class Calls:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


class SetsState:
    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        Path(state["path"]).touch()


def hostile(canary):
    """Objects whose unpickling leaves `canary` behind, and the name that must be refused."""
    touch = f"touch {canary}"
    return {
        "os.system": (Calls(os.system, touch), r"(posix|os)\.system"),
        "subprocess": (Calls(subprocess.check_call, ["touch", canary]), r"(subprocess|commands)\.check_call"),
        "pty": (Calls(pty.spawn, ["touch", canary]), r"pty\.spawn"),
        "eval": (Calls(eval, f"open({canary!r}, 'w').close()"), r"(builtins|__builtin__)\.eval"),
        "exec": (Calls(exec, f"open({canary!r}, 'w').close()"), r"(builtins|__builtin__)\.exec"),
        "bound method": (Calls(Path(canary).touch), r"(builtins|__builtin__)\.getattr"),
        "mkdir": (Calls(os.mkdir, canary), r"(posix|os)\.mkdir"),
        "nested in data": ({"a": [np.zeros(3), ({"b": Calls(os.mkdir, canary)},)]}, r"(posix|os)\.mkdir"),
        "nested reduce": (Calls(list, (Calls(os.mkdir, canary),)), r"(builtins|__builtin__)\.list|(posix|os)\.mkdir"),
        "in an object array": (np.array([None, Calls(os.mkdir, canary)], dtype=object), r"(posix|os)\.mkdir"),
        "as a key": ({Calls(os.mkdir, canary): 1}, r"(posix|os)\.mkdir"),
        "setstate": (SetsState(canary), r"\S+\.SetsState|copy_?reg\._reconstructor"),
        "numpy": (Calls(np.savetxt, canary, [1]), r"numpy\S*\.savetxt"),
        "numpy memmap": (Calls(np.memmap, canary, "u1", "w+", 0, 3), r"numpy\S*\.memmap"),
        "torch": (Calls(torch.save, 1, canary), r"torch\.serialization\.save"),
    }


# Opcodes by hand; CANARY stands for the file.
STREAMS = {
    "GLOBAL": (b"cos\nsystem\n(S'touch CANARY'\ntR.", r"wants to use os\.system"),
    "STACK_GLOBAL": (b"\x80\x04Vos\nVsystem\n\x93Vtouch CANARY\n\x85R.", r"wants to use os\.system"),
    "STACK_GLOBAL, dotted": (b"\x80\x04Vos\nVpath.os.system\n\x93Vtouch CANARY\n\x85R.", r"os\.path\.os\.system"),
    "INST": (b"(S'touch CANARY'\nios\nsystem\n.", r"wants to make a os\.system"),
    "OBJ": (b"(cos\nsystem\nS'touch CANARY'\no.", r"wants to use os\.system"),
    "NEWOBJ": (b"cbuiltins\nbytes\ncbuiltins\nmap\n(cos\nsystem\n(S'touch CANARY'\nlt\x81\x85\x81.", r"builtins\.map"),
    "NEWOBJ_EX": (
        b"\x80\x04csubprocess\nPopen\n(cbuiltins\nlist\n)Rt}\x920cos\nsystem\nVtouch CANARY\n\x85R.",
        r"subprocess\.Popen",
    ),
    "BUILD": (
        b"cargparse\nNamespace\n)\x81}S'__setstate__'\ncos\nsystem\nsbS'touch CANARY'\nb.", r"argparse\.Namespace",
    ),
    "memo": (b"\x80\x02cos\nsystem\nq\x000Vtouch CANARY\n\x85q\x010h\x00h\x01R.", r"os\.system"),
    "after numpy": (b"cnumpy\nndarray\n0cos\nsystem\n(S'touch CANARY'\ntR.", r"wants to use os\.system"),
    "EXT1": (b"\x80\x02\x82\xf0Vtouch CANARY\n\x85R.", "extension code"),
    "EXT2": (b"\x80\x02\x83\xf0\x00Vtouch CANARY\n\x85R.", "extension code"),
    "EXT4": (b"\x80\x02\x84\xf0\x00\x00\x00Vtouch CANARY\n\x85R.", "extension code"),
    "getattr": (b"c__builtin__\ngetattr\n(cos\npath\nS'os'\ntR.", r"__builtin__\.getattr"),
}  # fmt: skip
DO_NOTHING = {"getattr"}  # it only looks something up


@pytest.fixture
def canary(tmp_path):
    yield str(tmp_path / "canary")
    assert not (tmp_path / "canary").exists()


@pytest.fixture
def extension():
    copyreg.add_extension("posix", "system", 0xF0)
    yield
    copyreg.remove_extension("posix", "system", 0xF0)
    copyreg.clear_extension_cache()


def fires(stream, canary):
    """Whether Python's unpickler leaves the file behind; takes it away again."""
    with contextlib.suppress(Exception):
        pickle.loads(stream)
    path = Path(canary)
    found = path.exists()
    if found:
        path.rmdir() if path.is_dir() else path.unlink()
    return found


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", hostile(""))
def test_what_is_no_data_is_refused_by_name_and_does_not_run(tmp_path, canary, name, protocol):
    value, named = hostile(canary)[name]
    stream = pickle.dumps(value, protocol)
    if protocol == 4:
        assert fires(stream, canary)
    path = tmp_path / "a.pkl"
    path.write_bytes(stream)
    refused(path, f"wants to use ({named})")
    if protocol == 4:
        np.save(tmp_path / "a.npy", np.array({"a": value}, dtype=object))
        refused(tmp_path / "a.npy", f"wants to use ({named})")
        torch.save({"a": value}, tmp_path / "a.pt", pickle_protocol=4)
        refused(tmp_path / "a.pt", f"wants to use ({named})")


@pytest.mark.parametrize("name", STREAMS)
def test_opcodes_that_run_things_are_refused(tmp_path, canary, extension, name):
    stream, message = STREAMS[name]
    stream = stream.replace(b"CANARY", canary.encode())
    assert fires(stream, canary) == (name not in DO_NOTHING)
    (tmp_path / "a.pkl").write_bytes(stream)
    refused(tmp_path / "a.pkl", message)


def test_the_reader_has_no_means_to_run_anything():
    """It imports nothing that executes, and calls nothing by a computed name."""
    allowed = {
        "__future__", "collections.abc", "dataclasses", "math", "numpy", "numpy.lib", "os", "pathlib", "re", "stat",
        "struct", "tokenize", "typing", "zipfile", "eegrecon.errors", "eegrecon.data.pickle_machine",
        "eegrecon.data.pickle_names", "eegrecon.data.pickle_source",
    }  # fmt: skip
    files = sorted(Path(eegrecon.data.__path__[0]).glob("pickle*.py"))
    assert len(files) == 4
    for file in files:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert set(modules) <= allowed
            name = node.id if isinstance(node, ast.Name) else ""
            assert name not in {"eval", "exec", "compile", "__import__", "getattr", "setattr", "globals", "vars"}
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert {call for call in calls if call.startswith("os.")} <= {"os.fstat"}
