"""Targets in the shape of the predictions: losses never broadcast one against the other."""

import torch
from torch import Tensor

from detlib.utils.errors import ConfigAssertionError

__all__ = ["check_labels", "check_same_shape", "class_targets", "one_hot"]


def check_same_shape(pred: Tensor, target: Tensor, hint: str = "") -> None:
    """Raise a ConfigAssertionError unless both have one shape; ``hint`` ends its message."""
    if pred.shape != target.shape:
        raise ConfigAssertionError(
            f"predictions are {tuple(pred.shape)} and targets {tuple(target.shape)}; expected one shape{hint}"
        )


def class_targets(target: Tensor, logits: Tensor) -> Tensor:
    """Targets in 0..1 of sigmoid scores (..., C), from themselves or from integer labels (...).

    A label outside 0..C-1, such as C for the background, is a row of zeros.
    """
    if target.ndim != logits.ndim - 1:
        check_same_shape(logits, target, ", or integer labels, one per row of the predictions")
        return target.to(logits.dtype)
    check_labels(target, logits.shape[:-1])
    return one_hot(target, logits.shape[-1]).to(logits.dtype)


def check_labels(labels: Tensor, shape: torch.Size) -> None:
    """Raise a ConfigAssertionError unless the labels are whole numbers of that shape."""
    if labels.shape != shape or labels.is_floating_point():
        raise ConfigAssertionError(
            f"labels are {tuple(labels.shape)} of {labels.dtype}; expected {tuple(shape)} of an integer type"
        )


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(..., C) bool: True at the label of each (...) element, nowhere if it is outside 0..C-1."""
    # torch's one_hot raises for labels out of range, for which a GPU has to wait.
    return labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)
