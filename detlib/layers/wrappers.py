"""Conv2d with a norm and an activation, and thin functions that older projects import.

New code calls torch directly, save for :class:`Conv2d`, whose ``norm`` child is part of saved keys.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Conv2d",
    "cat",
    "check_if_dynamo_compiling",
    "cross_entropy",
    "disable_torch_compiler",
    "empty_input_loss_func_wrapper",
    "move_device_like",
    "nonzero_tuple",
    "shapes_to_tensor",
]


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` followed by a normalization layer and an activation, each optional."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of :class:`torch.nn.Conv2d` and two more.

        Args:
            norm: module or function applied to the convolution's output; None for none.
            activation: module or function applied last; None for none.
        """
        norm = kwargs.pop("norm", None)
        activation = kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """Concatenate, without a copy when there is one tensor only."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """Indices of the elements that are not zero, one tensor per axis; a scalar counts as one element."""
    return torch.atleast_1d(x).nonzero(as_tuple=True)


def empty_input_loss_func_wrapper(loss_func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make the mean of a loss over no elements 0, with a gradient, where torch gives NaN."""

    def wrapped(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any) -> Tensor:
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    wrapped.__name__ = loss_func.__name__
    wrapped.__doc__ = f"{loss_func.__name__} of torch, save that the mean over no elements is 0."
    return wrapped


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def shapes_to_tensor(x: list[int], device: torch.device | None = None) -> Tensor:
    """Sizes as a tensor of int64."""
    return torch.as_tensor(x, dtype=torch.int64, device=device)


def move_device_like(src: Tensor, dst: Tensor) -> Tensor:
    """``src`` on the device of ``dst``."""
    return src.to(dst.device)


def check_if_dynamo_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is tracing the caller."""
    return torch.compiler.is_compiling()


def disable_torch_compiler(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that ``torch.compile`` shall leave as it is."""
    return torch.compiler.disable(func)


class _NewEmptyTensorOp(torch.autograd.Function):
    """Give a tensor without elements another shape and keep its gradient; older projects import it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, new_shape: tuple[int, ...]) -> Tensor:
        ctx.shape = x.shape
        return x.new_empty(new_shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_empty(ctx.shape), None
