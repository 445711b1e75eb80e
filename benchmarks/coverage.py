"""How often the 95 % crossed bootstrap holds the truth, on simulated hits of 10 subjects who see the same pictures.

    python benchmarks/coverage.py [--tables 2000] [--draws 2000] [--pictures 200] [--subjects 10]

Subject i finds picture j when m + a_i + b_j + noise > 0 (all normal, the noise of standard deviation 1), so the mean
over all subjects and pictures there could be is known exactly. One line per case: rate, spread of subjects, spread of
picture difficulty (0: none is shared), then coverage and mean width of the interval the package gives ("studentised")
and of plain percentiles of the same resamples; two standard errors of a coverage at the end.
"""

import argparse
from collections.abc import Iterator
from statistics import NormalDist

import torch

from eegrecon.metrics.functional.intervals import crossed_bootstrap

KINDS = ("studentised", "percentile")


def coverage(
    kind: str,
    *,
    rate: float = 0.3,
    subject_spread: float = 0.15,
    difficulty: float = 0.8,
    tables: int = 2000,
    draws: int = 2000,
    n_subjects: int = 10,
    n_pictures: int = 200,
    seed: int = 0,
) -> float:
    """Share of simulated tables whose 95 % interval holds the true rate."""
    found = [
        low <= rate <= high
        for low, high in intervals(kind, rate, subject_spread, difficulty, tables, draws, n_subjects, n_pictures, seed)
    ]
    return sum(found) / tables


def intervals(
    kind: str,
    rate: float,
    subject_spread: float,
    difficulty: float,
    tables: int,
    draws: int,
    n_subjects: int,
    n_pictures: int,
    seed: int,
) -> Iterator[tuple[float, float]]:
    """The interval of one simulated table after another."""
    generator = torch.Generator().manual_seed(seed)
    # so that the mean over normal a, b and noise is `rate`
    middle = NormalDist().inv_cdf(rate) * (1 + subject_spread**2 + difficulty**2) ** 0.5
    for number in range(tables):
        subjects = subject_spread * torch.randn(n_subjects, 1, generator=generator)
        pictures = difficulty * torch.randn(1, n_pictures, generator=generator)
        noise = torch.randn(n_subjects, n_pictures, generator=generator)
        hits = (middle + subjects + pictures + noise > 0).double()
        if kind == "studentised":
            found = crossed_bootstrap(hits, draws=draws, seed=number)
            yield found.low, found.high
        else:
            yield percentiles(hits, draws, number)


def percentiles(hits: torch.Tensor, draws: int, seed: int) -> tuple[float, float]:
    """The plain crossed bootstrap: percentiles of the resampled means."""
    generator = torch.Generator().manual_seed(seed)
    counts = []
    for n in hits.shape:
        chosen = torch.randint(n, (draws, n), generator=generator)
        zeros = torch.zeros(draws, n, dtype=torch.float64)
        counts.append(zeros.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64)))
    means = ((counts[0] @ hits) * counts[1]).sum(1) / hits.numel()
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--percentile", action="store_true", help="also the plain percentiles")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = KINDS if options.percentile else KINDS[:1]
    for rate in (0.05, 0.3, 0.8):
        for spread in (0.15, 0.3):
            for difficulty in (0.0, 0.8):
                parts = []
                for kind in kinds:
                    sizes = (options.tables, options.draws, options.subjects, options.pictures)
                    found = list(intervals(kind, rate, spread, difficulty, *sizes, 0))
                    share = sum(low <= rate <= high for low, high in found) / len(found)
                    width = sum(high - low for low, high in found) / len(found)
                    parts.append(f"{kind} {share:.1%} (width {width:.3f})")
                case = f"rate {rate}, subjects {spread}, difficulty {difficulty}"
                print(f"{case}: {', '.join(parts)}", flush=True)
    print(f"two standard errors: {2 * (0.95 * 0.05 / options.tables) ** 0.5:.1%}")


if __name__ == "__main__":
    main()
