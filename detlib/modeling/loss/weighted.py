"""What the losses share: weights of the elements, and their reduction to a number."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from detlib.layers.losses import reduce_loss, upcast

__all__ = ["WeightedLoss", "reduce_loss", "weight_reduce_loss", "weighted_loss"]

_REDUCTIONS = ("none", "mean", "sum")


def weighted_loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a function of the elements weights and a reduction.

    ``f(pred, target, **kwargs)`` becomes ``f(pred, target, weight=None, reduction="mean", avg_factor=None, **kwargs)``,
    which reduces as :func:`weight_reduce_loss` says.

    >>> @weighted_loss
    ... def l2_loss(pred, target):
    ...     return (pred - target).square()
    >>> l2_loss(torch.tensor([1.0, 3.0]), torch.zeros(2), weight=torch.tensor([1.0, 0.0]), avg_factor=1)
    tensor(1.)
    """

    @functools.wraps(function)
    def weighted(
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction: str = "mean",
        avg_factor: float | Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        return weight_reduce_loss(function(pred, target, **kwargs), weight, reduction, avg_factor)

    return weighted


def weight_reduce_loss(
    loss: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """Multiply the elements of a loss by weights and reduce them, in float32 at least.

    Args:
        loss: elements of any shape.
        weight: factors that broadcast against ``loss``. The mean still divides by the number of all elements.
        reduction: "none", "mean" (0 for no elements) or "sum".
        avg_factor: what "mean" divides the sum by instead, such as the number of positives; one that is 0 counts as
            the smallest step of float32. "none" ignores it.

    Raises:
        ValueError: the reduction is unknown, or "sum" was combined with an ``avg_factor``.
    """
    loss = upcast(loss)
    if weight is not None:
        loss = loss * weight
    if avg_factor is None or reduction not in ("mean", "sum"):
        return reduce_loss(loss, reduction)
    if reduction == "sum":
        raise ValueError("avg_factor cannot be combined with reduction 'sum'; use reduction 'mean', or no avg_factor")
    return loss.sum() / _positive(avg_factor)


def _positive(avg_factor: float | Tensor) -> float | Tensor:
    eps = torch.finfo(torch.float32).eps
    if isinstance(avg_factor, Tensor):  # It stays on its device: float() would wait for a GPU.
        return upcast(avg_factor).clamp(min=eps)
    return max(avg_factor, eps)


class WeightedLoss(nn.Module):
    """Base of the losses: weights, reduces and scales the elements that a subclass computes.

    No predictions give 0, connected to the graph, or no elements if the reduction is "none".
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        """
        Args:
            reduction: "none", "mean" or "sum".
            loss_weight: factor of the result.
        """
        super().__init__()
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}; expected 'none', 'mean' or 'sum'")
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """
        Args:
            pred: (N, ...).
            target: (N, ...), as the class says.
            weight: one factor per sample, (N,), or per element of the loss.
            avg_factor: see :func:`weight_reduce_loss`.
            reduction_override: replaces the reduction of the constructor.
        """
        reduction = self.choose_reduction(reduction_override)
        loss = self.elements(upcast(pred), target)
        if weight is not None:
            weight = align_weight(weight, loss)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of each element or sample, neither weighted nor reduced; ``pred`` is float32 at least."""
        raise NotImplementedError

    def choose_reduction(self, override: str | None) -> str:
        """The reduction of one call."""
        if override is None:
            return self.reduction
        if override not in _REDUCTIONS:
            raise AssertionError(f"reduction_override is {override!r}; expected None, 'none', 'mean' or 'sum'")
        return override


def align_weight(weight: Tensor, loss: Tensor) -> Tensor:
    """Weights that broadcast against a loss: those with fewer dimensions belong to its first ones.

    (N,) for a loss (N, C) becomes (N, 1), where plain broadcasting would take it as C weights of columns.
    """
    aligned = weight.reshape(weight.shape + (1,) * (loss.ndim - weight.ndim))
    if aligned.ndim != loss.ndim or any(size not in (1, n) for size, n in zip(aligned.shape, loss.shape)):
        raise AssertionError(
            f"weight is {tuple(weight.shape)} for a loss of {tuple(loss.shape)}; expected one weight per sample, "
            f"{tuple(loss.shape[:1])}, or per element"
        )
    return aligned
