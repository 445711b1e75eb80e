"""Two gloo processes and one process with the global batch do the same step of stage 1, for every kind of loss."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn

from eegrecon.data.augment import Augment
from eegrecon.losses.objective import EncoderObjective
from eegrecon.metrics.retrieval import Retrieval
from eegrecon.models.encoders.atm_s import ATMS
from eegrecon.models.encoders.eegnet import EEGNetV4
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.models.image_projection import LinearProjection
from eegrecon.models.latent_head import LatentHead
from eegrecon.modules.distributed import synchronise_batch_statistics
from eegrecon.modules.encoder import EncoderModule
from eegrecon.modules.target_levels import LevelMixing

N, WORLD, STEPS, PICTURES = 16, 2, 2, 13

# What differs from the plain objective: of the loss, and of the module.
CASES = {
    "info_nce": {},
    "all terms": {"text": 0.2, "cosine": 0.3, "vae_latent": 0.5, "scale": 10.0},
    "siglip": {"kind": "siglip", "text": 0.2},
    "concepts": {"positives": "concept"},
    "as ATM": {"positives": "none", "normalise_eeg": False, "normalise_image": False, "logit_scale": "raw"},
    "projection": {"mse": 0.0, "projection": True},
    "random": {"mixing": "random"},
    "mean": {"mixing": "mean"},
    "uncertainty": {"mixing": "uncertainty"},
    "subject dropout": {"subject_dropout": 0.5},
    "batch norm": {"plain": True},
    "folded norm": {"eegnet": True},
    "augmented": {"augment": Augment(time_shift=3, channel_dropout=0.3, noise=0.2, mixup=0.4), "text": 0.1},
}
SPECIAL = ("projection", "mixing", "plain", "eegnet", "subject_dropout", "augment")


class WithBatchNorm(nn.Module):
    """The smallest encoder with torch's own batch normalisation, and a subject table."""

    def __init__(self, n_chans, n_times, dim):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(n_chans, 8, 5), nn.BatchNorm1d(8)
        self.head, self.subject = nn.Linear(8, dim), nn.Embedding(3, dim)

    def forward(self, eeg, subject):
        return self.head(torch.relu(self.norm(self.conv(eeg))).mean(2)) + self.subject(subject)


class Step(nn.Module):
    """A training step as a module, for torch's own DistributedDataParallel to wrap."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch, step):
        return self.module.training_step(batch, step)


def build(case):
    torch.manual_seed(0)
    options = {"contrastive": 0.9, "mse": 0.1, **CASES[case]}
    extra = {name: options.pop(name, None) for name in SPECIAL}
    plain = extra["plain"] or extra["subject_dropout"]
    encoder = WithBatchNorm(5, 90, 12) if plain else ATMS(5, 90, 12, dropout=0.0, conv_dropout=0.0, head_dropout=0.0)
    if extra["eegnet"]:
        encoder = EEGNetV4(5, 90, 12, dropout=0.0)
    network = AlignedEncoder(
        encoder,
        LatentHead(12, (4, 2, 2), dropout=0.0) if "vae_latent" in options else None,
        torch.zeros(5),
        torch.ones(5),
        image_projection=LinearProjection(12) if extra["projection"] else None,
        known_subjects=[1, 2],
        logit_bias=-2.0 if options.get("kind") == "siglip" else None,
    )
    levels = LevelMixing(extra["mixing"], 3, 1, PICTURES) if extra["mixing"] else None
    objective = EncoderObjective(**options)
    dropout = extra["subject_dropout"] or 0.0
    more = {"levels": levels, "subject_dropout": dropout, "augment": extra["augment"]}
    return EncoderModule(network, torch.optim.SGD, objective, **more).double()


def global_batch(step):
    torch.manual_seed(1 + step)
    double = {"dtype": torch.float64}  # the order of float32 sums alone moves gradients by 1e-6
    index = torch.arange(N) % PICTURES  # some pictures occur on both ranks
    # Ranks differ in level and scale, so that statistics of one rank alone would be wrong.
    scale, level = torch.linspace(0.5, 2, N, **double), torch.linspace(-1, 1, N, **double)
    levels = torch.randn(PICTURES, 3, 12, **double)[index]
    targets = {"image": levels[:, 1], "levels": levels, "text": torch.randn(5, 12, **double)[index % 5]}
    targets["vae_latent"] = torch.randn(PICTURES, 4, 2, 2, **double)[index]
    return {
        "eeg": torch.randn(N, 5, 90, **double) * scale[:, None, None] + level[:, None, None],
        "subject": torch.arange(N) % 4,  # 0 and 3 are unknown
        "image_index": index,
        "concept_index": index % 5,
        "repetition": torch.arange(N),
        "targets": targets,
    }


def part(batch, rank):
    rows = slice(rank * N // WORLD, (rank + 1) * N // WORLD)
    return {k: part(v, rank) if isinstance(v, dict) else v[rows] for k, v in batch.items()}


def train(module, step_of, mine):
    """Two epochs of one step, each with its gradients, and what the module holds in the end."""
    found = {}
    for step in range(STEPS):
        module.zero_grad()
        outputs = step_of(mine(global_batch(step)), step)
        outputs["loss"].backward()
        found |= {f"{step}/{name}": value.detach() for name, value in outputs.items()}
        found |= {f"{step}/grad/{name}": p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        if module.levels is not None:
            module.levels.end_epoch()
    return found | {f"buffer/{name}": value.clone() for name, value in module.named_buffers()}


def retrieval(rows):
    metric = Retrieval()
    names = ("eeg_embeds", "image_embeds", "image_index", "concept_index", "subject", "repetition")
    metric.update(*(rows[name] for name in names))
    return torch.tensor(list(metric.compute()))


def worker(rank, port, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    everything = {}
    for case in CASES:
        module = build(case)
        synchronise_batch_statistics(module.network)
        step = nn.parallel.DistributedDataParallel(Step(module))
        found = train(module, step, lambda batch: part(batch, rank))
        rows = module.eval().validation_step(part(global_batch(0), rank), 0)
        if rank == 1:  # a distributed sampler pads with duplicates
            rows = {k: torch.cat([v, v[:1]]) if v.ndim else v for k, v in rows.items()}
        found["retrieval"] = retrieval({k: v.detach() for k, v in rows.items()})
        everything[case] = found
    torch.save(everything, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # This file is the program of both processes: an installed package called `tests` may shadow ours in a spawned one.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, __file__]
    rest = [str(port), str(tmp_path)]
    processes = [subprocess.Popen([*words, str(rank), *rest], env=environment) for rank in range(WORLD)]
    assert [process.wait(timeout=120) for process in processes] == [0] * WORLD
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.ddp
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(ranks, case):
    module = build(case)
    one = train(module, module.training_step, lambda batch: batch)
    one["retrieval"] = retrieval(module.eval().validation_step(global_batch(0), 0))
    two = [rank[case] for rank in ranks]
    for name, value in one.items():
        if name.endswith("n_trials"):
            continue
        assert all(name in rank for rank in two), name
        # Regressions are of a rank's own trials; their mean is what DDP's average of gradients belongs to.
        own = name.split("/")[-1] in ("loss", "mse", "cosine", "vae_latent") and "grad" not in name
        found = [torch.stack([rank[name] for rank in two]).double().mean(0)] if own else [rank[name] for rank in two]
        for got in found:
            torch.testing.assert_close(
                got, value, atol=1e-6, rtol=1e-6, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
            )
    assert {*two[0]} == {*one}
    learnt = [name for name in one if name.startswith("0/grad/") and one[name].abs().max() > 1e-4]
    assert "0/grad/network.logit_scale" in learnt
    assert one["retrieval"][0] == 5
    if case == "projection":
        assert "0/grad/network.image_projection.weight" in learnt
    if case == "uncertainty":
        assert not one["buffer/levels.similarity"].isnan().any()
    if case == "subject dropout":  # every row of the table is used in one step: the unknown subject by force
        assert one["0/grad/network.encoder.subject.weight"].abs().amin(1).min() > 0


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
