"""Two gloo processes and one process with the global batch do the same step of stage 1."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn

from eegrecon.metrics.retrieval import Retrieval
from eegrecon.models.encoders.atm_s import ATMS
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.models.latent_head import LatentHead
from eegrecon.modules.distributed import synchronise_batch_statistics
from eegrecon.modules.encoder import EncoderModule

N, WORLD = 16, 2


class Step(nn.Module):
    """A training step as a module, for torch's own DistributedDataParallel to wrap."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module.training_step(batch, 0)


def build():
    torch.manual_seed(0)
    encoder = ATMS(5, 90, 12, dropout=0.0, conv_dropout=0.0, head_dropout=0.0)
    network = AlignedEncoder(encoder, LatentHead(12, (4, 2, 2), dropout=0.0), torch.zeros(5), torch.ones(5))
    return EncoderModule(network, torch.optim.SGD, contrastive=0.9, mse=0.1, vae_latent=0.5).double()


def global_batch():
    torch.manual_seed(1)
    double = {"dtype": torch.float64}  # the order of float32 sums alone moves gradients by 1e-6
    index = torch.arange(N) % 13  # some pictures occur on both ranks
    # Ranks differ in level and scale, so that statistics of one rank alone would be wrong.
    scale, level = torch.linspace(0.5, 2, N, **double), torch.linspace(-1, 1, N, **double)
    targets = {"image": torch.randn(13, 12, **double)[index], "vae_latent": torch.randn(13, 4, 2, 2, **double)[index]}
    return {
        "eeg": torch.randn(N, 5, 90, **double) * scale[:, None, None] + level[:, None, None],
        "subject": torch.ones(N, dtype=torch.long),
        "image_index": index,
        "concept_index": index,
        "repetition": torch.arange(N),
        "targets": targets,
    }


def part(batch, rank):
    rows = slice(rank * N // WORLD, (rank + 1) * N // WORLD)
    return {k: part(v, rank) if isinstance(v, dict) else v[rows] for k, v in batch.items()}


def result(module, outputs):
    outputs["loss"].backward()
    return {
        "outputs": {name: value.detach() for name, value in outputs.items()},
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "buffers": dict(module.named_buffers()),
    }


def retrieval(rows):
    metric = Retrieval()
    names = ("eeg_embeds", "image_embeds", "image_index", "concept_index", "subject", "repetition")
    metric.update(*(rows[name] for name in names))
    return tuple(metric.compute())


def worker(rank, port, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    module = build()
    synchronise_batch_statistics(module.network)
    step = nn.parallel.DistributedDataParallel(Step(module))
    found = result(module, step(part(global_batch(), rank)))
    rows = module.eval().validation_step(part(global_batch(), rank), 0)
    if rank == 1:  # a distributed sampler pads with duplicates
        rows = {k: torch.cat([v, v[:1]]) if v.ndim else v for k, v in rows.items()}
    found["retrieval"] = retrieval({k: v.detach() for k, v in rows.items()})
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.ddp
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # This file is the program of both processes: an installed package called `tests` may shadow ours in a spawned one.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, __file__]
    rest = [str(port), str(tmp_path)]
    processes = [subprocess.Popen([*words, str(rank), *rest], env=environment) for rank in range(WORLD)]
    assert [process.wait(timeout=120) for process in processes] == [0] * WORLD
    module = build()
    one = result(module, module.training_step(global_batch(), 0))
    rows = module.eval().validation_step(global_batch(), 0)
    one["retrieval"] = retrieval({k: v.detach() for k, v in rows.items()})
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]

    for name in ("loss", "contrastive", "mse", "vae_latent"):
        mean = torch.stack([rank["outputs"][name] for rank in ranks]).mean()
        torch.testing.assert_close(mean, one["outputs"][name], atol=1e-6, rtol=1e-6)
    for rank in ranks:
        torch.testing.assert_close(rank["outputs"]["contrastive"], one["outputs"]["contrastive"], atol=1e-6, rtol=1e-6)
        assert rank["gradients"].keys() == one["gradients"].keys()
        for name, gradient in one["gradients"].items():
            torch.testing.assert_close(
                rank["gradients"][name], gradient, atol=1e-6, rtol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
            )
        for name, value in one["buffers"].items():
            torch.testing.assert_close(rank["buffers"][name], value, atol=1e-6, rtol=1e-6)
        assert rank["retrieval"] == one["retrieval"]
    assert one["gradients"]["network.logit_scale"].abs() > 1e-4
    assert one["retrieval"][0] == 13


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
