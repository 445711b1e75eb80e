"""How far imported official checkpoints are from the official modules, at published sizes and with random weights.

    PYTHONPATH=. python benchmarks/official_equality.py

The official modules are those of the tests (`tests/official_*.py`, written from the published layer lists). Printed:
the largest absolute difference of outputs, the size of an output, and whether export gives back the same numbers.
"""

import contextlib
import io
import tempfile
from pathlib import Path

import torch

import eegrecon
from eegrecon.cli import main
from tests.builders_atm import official_encoder, saved
from tests.official_prior import OfficialPrior


def show(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """One line: largest difference, and the mean size of what is compared."""
    difference, size = (ours - theirs).abs().max().item(), theirs.abs().mean().item()
    print(f"{name}: largest difference {difference:.1e}, mean size {size:.2f}")


def round_trip(home: Path, state: dict[str, torch.Tensor]) -> Path:
    """Import and export; returns the run's directory."""
    home.mkdir()
    file, run, back = saved(home / "theirs.pth", state), home / "run", home / "back.pth"
    with contextlib.redirect_stderr(io.StringIO()):
        assert main(["import-atm", file, "--out", str(run), "--subject", "8"]) == 0
        assert main(["export-atm", str(next(run.glob("*/manifest.json")).parent), "--out", str(back)]) == 0
    again = torch.load(back, weights_only=True)
    equal = set(again) == set(state) and all(torch.equal(again[name], value) for name, value in state.items())
    size = sum(value.numel() for name, value in state.items())
    print(
        f"{home.name}: {len(state)} entries, {size:,} numbers; exported again: {'identical' if equal else 'DIFFERENT'}"
    )
    return run


@torch.no_grad()
def run(home: Path) -> None:
    """Both networks."""
    encoder = official_encoder(n_chans=63, n_times=250, dim=1024)
    ours = eegrecon.load(round_trip(home / "encoder", encoder.state_dict()) / "encoder")
    eeg = torch.randn(16, 63, 250)
    ids = [torch.full((16,), subject) for subject in range(1, 13)]
    show("ATM-S, ids 1-12", *(torch.stack([network(eeg, one) for one in ids]) for network in (ours, encoder)))
    prior = OfficialPrior().eval()
    ours = eegrecon.load(round_trip(home / "prior", prior.state_dict()) / "prior")
    t = torch.arange(0, 1000, 16)
    x, c = torch.randn(len(t), 1024), torch.randn(len(t), 1024)
    scaled = ours.standardise_target(x)
    show("prior, conditional", ours.network(scaled, t, ours.standardise_cond(c)), prior(x, t, c))
    show("prior, unconditional", ours.network(scaled, t, None), prior(x, t, None))


if __name__ == "__main__":
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
