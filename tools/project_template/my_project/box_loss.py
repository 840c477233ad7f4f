"""A loss of boxes: quadratic for small differences, linear for large ones, smooth everywhere."""

import math

import torch.nn.functional as F
from torch import Tensor

from detlib.modeling.loss import LOSS_REGISTRY, WeightedLoss

__all__ = ["MyProjectBoxLoss"]


@LOSS_REGISTRY.register()
class MyProjectBoxLoss(WeightedLoss):
    """scale * log(cosh(d / scale)) of each difference d, ``{NAME: MyProjectBoxLoss, SCALE: 0.1}`` in a config.

    `WeightedLoss` adds weights and the reduction. The loss is given deltas; with a class attribute ``on_boxes = True``
    it would be given XYXY boxes.
    """

    def __init__(self, scale: float = 0.1, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        """
        Args:
            scale: difference at which quadratic turns into linear.
            reduction: "none", "mean" or "sum".
            loss_weight: factor of the result.
        """
        super().__init__(reduction, loss_weight)
        self.scale = scale

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of each number of (N, 4) deltas."""
        x = (pred - target).abs() / self.scale
        # log(cosh(x)) = log((e^x + e^-x) / 2); cosh itself would overflow.
        return self.scale * (x + F.softplus(-2 * x) - math.log(2))
