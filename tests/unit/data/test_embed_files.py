import numpy as np
import pytest
import torch

from eegrecon.data.embed_files import read_index, read_matrix
from eegrecon.errors import DataError


class Trap:
    """Would write a file if it were unpickled."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_names_come_first_then_the_only_matrix(tmp_path):
    path = tmp_path / "x.pt"
    a, b = torch.rand(3, 2), torch.rand(3, 2)
    torch.save({"eeg_embeds": a, "img_features": b, "note": "text", "mean": torch.zeros(2)}, path)
    for role, want, name in (("eeg", a, "eeg_embeds"), ("image", b, "img_features")):
        found, taken = read_matrix(path, role)
        assert (found.tolist(), taken) == (want.tolist(), name)
    with pytest.raises(
        DataError, match=r"must hold text_embeds or text_features, .* several that could be \(eeg_embeds, "
    ):
        read_matrix(path, "text")
    torch.save({"z": a, "labels": torch.arange(3)}, path)
    assert read_matrix(path, "text")[1] == "z"
    assert read_index(path).tolist() == [0, 1, 2]
    torch.save({"labels": torch.arange(3)}, path)
    with pytest.raises(DataError, match=r"none that is a matrix of numbers; all in it: labels \(3,\)"):
        read_matrix(path, "eeg")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_becomes_float32(tmp_path, dtype):
    torch.save(torch.ones(2, 3, dtype=dtype, requires_grad=True), tmp_path / "x.pt")
    found, _ = read_matrix(tmp_path / "x.pt", "eeg")
    assert (found.dtype, found.shape) == (np.float32, (2, 3))


def test_what_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"eeg_embeds": Trap()}, "trap.pt")
    np.save("trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    for name in ("trap.pt", "trap.npy"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            read_matrix(tmp_path / name, "eeg")
    assert not (tmp_path / "trapped").exists()
    for name in ("broken.npy", "broken.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"none of it")
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            read_matrix(tmp_path / name, "eeg")
    (tmp_path / "x.mat").touch()
    kinds = r"x.mat is none of the kinds that are read here \(.npy, .safetensors, .pt, .pth\)"
    with pytest.raises(DataError, match=kinds):
        read_matrix(tmp_path / "x.mat", "eeg")
    np.save("empty.npy", np.zeros((0, 4)))
    with pytest.raises(DataError, match=r"empty.npy is empty, \(0, 4\)"):
        read_matrix(tmp_path / "empty.npy", "eeg")
