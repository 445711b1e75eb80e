"""Closed-form ridge regression from flattened EEG to the target embedding: the baseline, and an encoder of its own."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

# Penalties relative to the mean eigenvalue of the Gram matrix, so that they mean the same for any data.
ALPHAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def count_bins(n_times: int, samples_per_bin: int) -> int:
    """How many bins a trial has; the last may be of fewer samples.

    >>> count_bins(201, 5)
    41

    Raises:
        ValueError: The size of a bin is no whole number from 1 to the samples of a trial.
    """
    if type(samples_per_bin) is not int or not 1 <= samples_per_bin <= n_times:
        raise ValueError(
            f"samples_per_bin is {samples_per_bin!r}, expected a whole number from 1 to {n_times}, the samples of a "
            "trial in data.window"
        )
    return -(-n_times // samples_per_bin)


class Ridge(nn.Module):
    """A linear encoder: eeg (b, n_chans, n_times) -> eeg_embeds (b, dim); `subject` is ignored by construction.

    Args:
        n_chans: channels.
        n_times: samples of a trial.
        dim: size of the target embedding.
        alphas: the penalties to choose from, relative as in `fit_ridge`.
        samples_per_bin: the linear map sees means over so many consecutive samples; kept in the state dict.
    """

    samples_per_bin: Tensor

    def __init__(
        self, n_chans: int, n_times: int, dim: int, *, alphas: Sequence[float] = ALPHAS, samples_per_bin: int = 1
    ) -> None:
        super().__init__()
        self.alphas = tuple(alphas)
        self.linear = nn.Linear(n_chans * count_bins(n_times, samples_per_bin), dim)
        self.register_buffer("samples_per_bin", torch.tensor(samples_per_bin))

    def bins(self, eeg: Float[Tensor, "b n_chans n_times"]) -> Float[Tensor, "b n_chans n_bins"]:
        """Means over `samples_per_bin` consecutive samples; that of a shorter last bin is over what is there."""
        size = int(self.samples_per_bin)
        return eeg if size == 1 else avg_pool1d(eeg, size, ceil_mode=True)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        return self.linear(self.bins(eeg).flatten(1))

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: Tensor) -> None:
        """Takes the result of `fit_ridge`: weight (dim, n_chans * n_bins), bias (dim,)."""
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)


class RidgeFit(NamedTuple):
    """Weight (dim, p), bias (dim,), the chosen alpha (relative) and the score of every alpha."""

    weight: Tensor
    bias: Tensor
    alpha: float
    scores: dict[float, float]


@torch.no_grad()
def fit_ridge(
    x: Tensor,
    y: Tensor,
    *,
    val_x: Tensor,
    score: Callable[[Tensor], float],
    alphas: Sequence[float] = ALPHAS,
) -> RidgeFit:
    """Minimises |(x - mean) w - (y - mean)|² + alpha·s·|w|² for every alpha; keeps the one with the best score.

    `s` is the mean diagonal of the Gram matrix of the smaller side. With more features than rows the dual is solved:
    (K + alpha·s·I) a = y, w = xᵀ a, K = x xᵀ, one Cholesky factor per alpha, no eigenvectors. Float32 throughout: at
    5,400 x 15,750 this is 1e12 operations and 0.5 GB.

    Args:
        x: (n, p) training inputs.
        y: (n, dim) training targets.
        val_x: (m, p) validation inputs.
        score: maps validation predictions (m, dim) to a number, larger is better.
        alphas: the grid, relative to `s`; ties keep the larger (smoother) one.

    Raises:
        ValueError: no alpha is given, or one is not positive.
    """
    _check(alphas)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    y = y - y_mean
    n, p = x.shape
    dual = n <= p
    centred = val_x - x_mean
    if not dual:
        return _solve(x.T @ x, x.T @ y, centred, x_mean, y_mean, score, alphas)
    fit = _solve(x @ x.T, y, centred @ x.T, torch.zeros(n), y_mean, score, alphas)
    weight = (x.T @ fit.weight.T).T.contiguous()
    return RidgeFit(weight, y_mean - weight @ x_mean, fit.alpha, fit.scores)


@torch.no_grad()
def fit_ridge_in_blocks(
    blocks: Iterable[tuple[Tensor, Tensor]],
    *,
    val_x: Tensor,
    score: Callable[[Tensor], float],
    alphas: Sequence[float] = ALPHAS,
) -> RidgeFit:
    """`fit_ridge` for more rows than features, one pass over rows that never are in memory together.

    What it keeps is p x p: 1 GB, twice at once, at 15,750 features.

    Args:
        blocks: (x (k, p), y (k, dim)), at least one of at least one row.
        val_x: See `fit_ridge`, as the others.
        score: See there.
        alphas: See there.

    Raises:
        ValueError: As `fit_ridge`, or there are no rows.
    """
    _check(alphas)
    sums: list[Tensor] | None = None
    n, shift_x, shift_y = 0, torch.empty(0), torch.empty(0)
    for x, y in blocks:
        if sums is None:
            # Around a first guess of the means: of large sums that nearly cancel, float32 would leave little.
            shift_x, shift_y = x.mean(0), y.mean(0)
            p, dim = x.shape[1], y.shape[1]
            sums = [x.new_zeros(p, p), x.new_zeros(p, dim), x.new_zeros(p), y.new_zeros(dim)]
        x, y = x - shift_x, y - shift_y
        sums[0].addmm_(x.T, x)
        sums[1].addmm_(x.T, y)
        sums[2] += x.sum(0)
        sums[3] += y.sum(0)
        n += len(x)
    if sums is None:
        raise ValueError("ridge needs at least one row")
    del x, y  # the last block would stay
    gram, right, x_sum, y_sum = sums
    gram.addr_(x_sum, x_sum, alpha=-1 / n)
    right.addr_(x_sum, y_sum, alpha=-1 / n)
    x_mean, y_mean = shift_x + x_sum / n, shift_y + y_sum / n
    return _solve(gram, right, val_x - x_mean, x_mean, y_mean, score, alphas)


def fit_bytes(n: int, p: int, dim: int, m: int) -> int:
    """What fitting takes at its peak: `fit_ridge` if n <= p, its inputs counted, else `fit_ridge_in_blocks`.

    Args:
        n: training rows.
        p: features.
        dim: targets.
        m: validation rows.
    """
    side = min(n, p)
    solving = 2 * side * side + 6 * side * dim  # Gram matrix and factor; right-hand side, solutions
    data = 2 * m * p + 2 * p * dim  # validation as given and centred, weights
    dual = 2 * n * p + m * n + 2 * n * dim  # training as given and centred
    return 4 * (solving + data + (dual if n <= p else 0))


def _check(alphas: Sequence[float]) -> None:
    if not alphas or min(alphas) <= 0:
        raise ValueError(f"ridge needs positive alphas, got {list(alphas)}")


def _solve(
    gram: Tensor,
    right: Tensor,
    val: Tensor,
    mean: Tensor,
    y_mean: Tensor,
    score: Callable[[Tensor], float],
    alphas: Sequence[float],
) -> RidgeFit:
    """(gram + alpha·s·I) solution = right for every alpha; predictions val @ solution + y_mean are scored.

    The diagonal of `gram` is overwritten.
    """
    unit = gram.diagonal().mean()
    if not unit > 0:
        raise ValueError("ridge cannot be fitted to constant inputs")
    diagonal = gram.diagonal().clone()
    best: tuple[float, float, Tensor] | None = None
    scores = {}
    for alpha in sorted(alphas, reverse=True):
        gram.diagonal().copy_(diagonal + alpha * unit)
        solution = _solve_positive(gram, right)
        scores[alpha] = score(val @ solution + y_mean)
        if best is None or scores[alpha] > best[0]:
            best = (scores[alpha], alpha, solution)
    assert best is not None
    _, alpha, solution = best
    weight = solution.T
    return RidgeFit(weight.contiguous(), y_mean - weight @ mean, alpha, scores)


def _solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """`torch.cholesky_solve(right, cholesky(matrix))` without its two copies of the factor, as large as the matrix."""
    factor = torch.linalg.cholesky(matrix)
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)
