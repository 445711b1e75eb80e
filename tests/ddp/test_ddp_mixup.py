"""Mixup mixes the same rows of a global batch whatever the number of processes, with odd shares, too."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from eegrecon.data.augment import Augment
from eegrecon.modules.augmentation import augmented
from eegrecon.modules.distributed import uniform_rows

WORLD = 2
SIZES = (10, 8, 2)  # of a global batch: 5 rows a process, 4, and a pair that is shared out
AUGMENT = Augment(time_shift=1, noise=0.1, mixup=0.4)


def view(n, rows=slice(None)):
    """What training sees of these rows of a global batch of n."""
    generator = torch.Generator().manual_seed(n)
    eeg, image, latent = (torch.randn(n, *shape, generator=generator) for shape in ((3, 7), (4,), (1, 2, 2)))
    batch = {"eeg": eeg[rows], "targets": {"image": image[rows], "vae_latent": latent[rows]}}
    batch |= {"image_index": torch.arange(n)[rows], "concept_index": torch.arange(n)[rows] // 3}

    def draw(purpose, shape=(), *, normal=False):
        return uniform_rows(len(batch["eeg"]), torch.Generator().manual_seed(purpose), shape, normal=normal)

    seen = augmented(batch, AUGMENT, torch.zeros(3), torch.ones(3), draw)
    return {name: seen[name] for name in ("eeg", "image_index", "concept_index")} | seen["targets"]


def worker(rank, port, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    share = {n: n // WORLD for n in SIZES}
    torch.save({n: view(n, slice(rank * b, (rank + 1) * b)) for n, b in share.items()}, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, __file__]
    rest = [str(port), str(tmp_path)]
    processes = [subprocess.Popen([*words, str(rank), *rest], env=environment) for rank in range(WORLD)]
    assert [process.wait(timeout=120) for process in processes] == [0] * WORLD
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.ddp
@pytest.mark.parametrize("n", SIZES)
def test_two_processes_mix_what_one_mixes(ranks, n):
    one = view(n)
    assert one["image_index"].tolist() == [[row, row ^ 1] for row in range(n)]
    for name, value in one.items():
        assert torch.equal(torch.cat([rank[n][name] for rank in ranks]), value), name


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
