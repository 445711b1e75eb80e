"""Collective operations that gradients flow through, for losses and batch statistics over all ranks.

Convention: every rank computes the same global loss L from gathered values. The backward of a collective sums the
gradients of all ranks, which makes each rank's parameter gradient `world_size` times its share of dL; DDP's average
over ranks turns that into exactly dL. Terms that a rank computes from its own trials alone must be means over them.

torch's own SyncBatchNorm refuses CPU tensors and `torch.distributed.nn` is deprecated, hence these few lines.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


def is_distributed() -> bool:
    """Whether more than one process computes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if is_distributed() else 0


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.contiguous().clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.rows = len(value)
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def all_reduce_mean(value: Tensor) -> Tensor:
    """Mean over ranks, with gradient; ranks hold equally many trials (the last incomplete global batch is dropped)."""
    if not is_distributed():
        return value
    return _AllReduceSum.apply(value) / dist.get_world_size()


def all_gather_rows(value: Tensor) -> Tensor:
    """All ranks' rows: (b, ...) -> (world_size * b, ...), rank by rank, with gradient; every rank holds b rows."""
    if not is_distributed():
        return value
    return _AllGather.apply(value)


def uniform_rows(b: int, generator: torch.Generator, shape: tuple[int, ...] = (), *, normal: bool = False) -> Tensor:
    """Uniform numbers in [0, 1) for this rank's b rows of a global batch, (b, *shape) float32, on the CPU.

    The whole global batch is drawn on every rank, so that a row gets the number it would get in a single process.

    Args:
        b: Rows of this rank (every rank holds as many).
        generator: Of the same state on every rank (see `data.streams.generator_of`: seed, purpose, epoch, batch).
        shape: Of one row's numbers.
        normal: Standard normal numbers instead.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    draw = torch.randn if normal else torch.rand
    return draw(world * b, *shape, generator=generator)[rank * b : (rank + 1) * b]


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the trials of all ranks, on any device: (b, c, ...) -> (b, c, ...).

    Two passes (mean, then squared deviations), each with one differentiable all-reduce. State dict as `nn.BatchNorm*d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected an input of at least 2 dimensions, got {input.ndim}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalised input; running statistics as one process with the global batch would have them."""
        if not self.training or not is_distributed():
            return super().forward(input)
        dims = [d for d in range(input.ndim) if d != 1]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(torch.promote_types(input.dtype, torch.float32))
            mean = all_reduce_mean(x.mean(dims))
            centred = x - mean.view(shape)
            var = all_reduce_mean(centred.square().mean(dims))
            count = x.numel() // x.shape[1] * dist.get_world_size()
            if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
                with torch.no_grad():
                    self.num_batches_tracked += 1
                    rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                    self.running_mean.lerp_(mean, rate)
                    self.running_var.lerp_(var * (count / (count - 1)), rate)
            y = centred * torch.rsqrt(var + self.eps).view(shape)
            if self.affine:
                y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)


def synchronise_batch_statistics(network: nn.Module) -> nn.Module:
    """Makes every batch statistic of a network a statistic over all ranks; parameters and state-dict keys stay.

    Batch-normalisation layers become `GlobalBatchNorm`. A module that computes such statistics itself announces it by
    an attribute `mean_over_ranks`, which is set to `all_reduce_mean`.

    Returns:
        The network, changed in place.
    """
    for module in list(network.modules()):
        if hasattr(module, "mean_over_ranks"):
            module.mean_over_ranks = all_reduce_mean  # type: ignore[assignment] # a plain attribute
        for name, child in list(module.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, GlobalBatchNorm):
                setattr(module, name, _converted(child))
    return network


def _converted(norm: nn.modules.batchnorm._BatchNorm) -> GlobalBatchNorm:
    twin = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    # The very same tensors, so that an optimiser built before keeps working.
    twin._parameters.update(norm._parameters)
    twin._buffers.update(norm._buffers)
    twin.training = norm.training
    return twin
