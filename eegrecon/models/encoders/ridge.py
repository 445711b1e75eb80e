"""Closed-form ridge regression from flattened EEG to the target embedding: the baseline, and an encoder of its own."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# Penalties relative to the mean eigenvalue of the Gram matrix, so that they mean the same for any data.
ALPHAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Ridge(nn.Module):
    """A linear encoder: eeg (b, n_chans, n_times) -> eeg_embeds (b, dim); `subject` is ignored by construction.

    Args:
        n_chans: channels.
        n_times: samples of a trial.
        dim: size of the target embedding.
        alphas: the penalties to choose from, relative as in `fit_ridge`.
    """

    def __init__(self, n_chans: int, n_times: int, dim: int, *, alphas: Sequence[float] = ALPHAS) -> None:
        super().__init__()
        self.alphas = tuple(alphas)
        self.linear = nn.Linear(n_chans * n_times, dim)

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        return self.linear(eeg.flatten(1))

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: Tensor) -> None:
        """Takes the result of `fit_ridge`: weight (dim, n_chans * n_times), bias (dim,)."""
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
    if not alphas or min(alphas) <= 0:
        raise ValueError(f"ridge needs positive alphas, got {list(alphas)}")
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    y = y - y_mean
    n, p = x.shape
    dual = n <= p
    gram = x @ x.T if dual else x.T @ x
    right = y if dual else x.T @ y
    unit = gram.diagonal().mean()
    if not unit > 0:
        raise ValueError("ridge cannot be fitted to constant inputs")
    centred = val_x - x_mean
    across = centred @ x.T if dual else centred
    best: tuple[float, float, Tensor] | None = None
    scores = {}
    for alpha in sorted(alphas, reverse=True):
        penalised = gram.clone()
        penalised.diagonal().add_(alpha * unit)
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(penalised))
        scores[alpha] = score(across @ solution + y_mean)
        if best is None or scores[alpha] > best[0]:
            best = (scores[alpha], alpha, solution)
    assert best is not None
    _, alpha, solution = best
    weight = (x.T @ solution if dual else solution).T
    return RidgeFit(weight.contiguous(), y_mean - weight @ x_mean, alpha, scores)
