"""A loss of boxes: quadratic for small differences, linear for large ones, smooth everywhere."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from detlib.modeling.loss import LOSS_REGISTRY, weighted_loss

__all__ = ["MyProjectBoxLoss", "log_cosh_loss"]


@weighted_loss
def log_cosh_loss(pred: Tensor, target: Tensor, *, scale: float) -> Tensor:
    """scale * log(cosh(d / scale)) of each difference d; `weighted_loss` adds weights and reduction."""
    x = (pred - target).abs() / scale
    # log(cosh(x)) = log((e^x + e^-x) / 2); cosh itself would overflow.
    return scale * (x + F.softplus(-2 * x) - math.log(2))


@LOSS_REGISTRY.register()
class MyProjectBoxLoss(nn.Module):
    """log_cosh_loss as a part, ``{NAME: MyProjectBoxLoss, SCALE: 0.1}`` in a config.

    It is given deltas. With a class attribute ``on_boxes = True`` it would be given XYXY boxes.
    """

    def __init__(self, scale: float = 0.1, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        """
        Args:
            scale: difference at which quadratic turns into linear.
            reduction: "none", "mean" or "sum".
            loss_weight: factor of the result.
        """
        super().__init__()
        self.scale = scale
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
            pred: (N, 4).
            target: (N, 4).
            weight: factors that broadcast against (N, 4).
            avg_factor: what "mean" divides the sum by in place of the number of elements.
            reduction_override: replaces the reduction of the constructor.
        """
        reduction = reduction_override or self.reduction
        loss = log_cosh_loss(pred, target, weight, reduction=reduction, avg_factor=avg_factor, scale=self.scale)
        return self.loss_weight * loss
