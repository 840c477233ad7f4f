"""Batches that are spread over processes: gathered with and without gradient, and shuffled for batch norm."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from detlib.utils import comm

__all__ = ["broadcast", "concat_all_gather", "gather_with_gradient", "shuffle", "sum_with_gradient", "unshuffle"]


@torch.no_grad()
def broadcast(*tensors: Tensor) -> None:
    """Fill tensors with the values that those of the first process have."""
    if comm.get_world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


@torch.no_grad()
def concat_all_gather(x: Tensor) -> Tensor:
    """From (N, ...) of each of W processes to (N * W, ...), in the order of ranks, without gradient."""
    if comm.get_world_size() == 1:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(comm.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def gather_with_gradient(x: Tensor) -> Tensor:
    """From (N, ...) of each of W processes to (N * W, ...), in the order of ranks.

    The gradient of the process's own part is the sum of those of all processes, so that after DDP's averaging that of a
    loss over the joint batch is the same as in one process.
    """
    return x if comm.get_world_size() == 1 else _GatherWithGradient.apply(x)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return concat_all_gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum_of_all(gradient).chunk(comm.get_world_size())[comm.get_rank()]


def sum_with_gradient(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, whose gradient is the sum of theirs: see :func:`gather_with_gradient`."""
    return x if comm.get_world_size() == 1 else _SumWithGradient.apply(x)


class _SumWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum_of_all(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum_of_all(gradient)


def _sum_of_all(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@torch.no_grad()
def shuffle(x: Tensor) -> tuple[Tensor, Tensor]:
    """Deal the joint batch anew to the processes, so that batch norm cannot tell keys of one image by their company.

    MoCo (https://arxiv.org/abs/1911.05722, sec. 3.3).

    Args:
        x: (N, ...), of the same N in every process.

    Returns:
        N of the joint batch, and the permutation for :func:`unshuffle`.
    """
    gathered = concat_all_gather(x)
    order = torch.randperm(len(gathered), device=x.device)
    if comm.get_world_size() > 1:
        dist.broadcast(order, src=0)
    return gathered[order.chunk(comm.get_world_size())[comm.get_rank()]], order


@torch.no_grad()
def unshuffle(x: Tensor, order: Tensor) -> Tensor:
    """Bring what was made of a shuffled batch back to the process and the place that its images came from."""
    gathered = concat_all_gather(x)
    own = torch.argsort(order).chunk(comm.get_world_size())[comm.get_rank()]
    return gathered[own]
