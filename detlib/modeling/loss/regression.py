"""Losses of box deltas, of boxes and of masks."""

from torch import Tensor

from detlib.layers.losses import ciou_loss, dice_loss, diou_loss, giou_loss, iou_loss, smooth_l1_loss, upcast
from detlib.modeling.loss.build import LOSS_REGISTRY
from detlib.modeling.loss.targets import check_labels, check_same_shape, one_hot
from detlib.modeling.loss.weighted import WeightedLoss, weighted_loss

__all__ = [
    "CIoULoss",
    "DIoULoss",
    "DiceLoss",
    "GIoULoss",
    "IoULoss",
    "L1Loss",
    "MSELoss",
    "SmoothL1Loss",
    "l1_loss",
]


@weighted_loss
def l1_loss(pred: Tensor, target: Tensor) -> Tensor:
    """|pred - target| of two tensors of one shape, which must have elements; :func:`weighted_loss` adds the reduction.

    :class:`L1Loss` takes empty ones as well.
    """
    check_same_shape(pred, target)
    if target.numel() == 0:
        raise AssertionError(f"predictions and targets are {tuple(pred.shape)}, so there is nothing to compare")
    return (pred - target).abs()


@LOSS_REGISTRY.register()
class L1Loss(WeightedLoss):
    """|d| of the difference d of two tensors of one shape."""

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        check_same_shape(pred, target)
        return (pred - target).abs()


@LOSS_REGISTRY.register()
class SmoothL1Loss(WeightedLoss):
    """d^2 / (2 beta) for a difference |d| < beta, else |d| - beta / 2 (Fast R-CNN, https://arxiv.org/abs/1504.08083)."""

    def __init__(self, beta: float = 1.0, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        """
        Args:
            beta: where L2 turns into L1; 0 gives L1.
        """
        super().__init__(reduction, loss_weight)
        if beta < 0:
            raise ValueError(f"beta is {beta}; expected 0, which gives L1, or more")
        self.beta = beta

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        check_same_shape(pred, target)
        return smooth_l1_loss(pred, target, beta=self.beta)


@LOSS_REGISTRY.register()
class MSELoss(WeightedLoss):
    """d^2 of the difference d of two tensors of one shape."""

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        check_same_shape(pred, target)
        return (pred - target).square()


class _BoxLoss(WeightedLoss):
    """Base of the losses of pairs of absolute XYXY boxes: (N, 4) and (N, 4) to (N,)."""

    on_boxes = True

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """As :meth:`WeightedLoss.forward`; the weights of the four coordinates, (N, 4), are averaged."""
        # No need to ask for weights that are all 0: the elements are finite, so that 0 with a gradient of 0 results.
        if weight is not None and weight.ndim == 2:
            weight = upcast(weight).mean(dim=-1)
        return super().forward(pred, target, weight, avg_factor, reduction_override)


@LOSS_REGISTRY.register()
class IoULoss(_BoxLoss):
    """Loss of the plain IoU of boxes: see :func:`detlib.layers.losses.iou_loss`."""

    def __init__(self, mode: str = "log", eps: float = 1e-6, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        """
        Args:
            mode: "log", "linear" or "square".
            eps: least IoU in the logarithm.
        """
        super().__init__(reduction, loss_weight)
        if mode not in ("log", "linear", "square"):
            raise ValueError(f"mode is {mode!r}; expected 'log', 'linear' or 'square'")
        self.mode = mode
        self.eps = eps

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        check_same_shape(pred, target)
        return iou_loss(pred, target, mode=self.mode, eps=self.eps)


@LOSS_REGISTRY.register()
class GIoULoss(_BoxLoss):
    """Generalized IoU loss of boxes: see :func:`detlib.layers.giou_loss`."""

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        check_same_shape(pred, target)
        return giou_loss(pred, target)


@LOSS_REGISTRY.register()
class DIoULoss(_BoxLoss):
    """Distance IoU loss of boxes: see :func:`detlib.layers.diou_loss`."""

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        check_same_shape(pred, target)
        return diou_loss(pred, target)


@LOSS_REGISTRY.register()
class CIoULoss(_BoxLoss):
    """Complete IoU loss of boxes: see :func:`detlib.layers.ciou_loss`."""

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        check_same_shape(pred, target)
        return ciou_loss(pred, target)


@LOSS_REGISTRY.register()
class DiceLoss(WeightedLoss):
    """Dice loss of mask logits: see :func:`detlib.layers.losses.dice_loss`.

    Logits (N, H, W), or (N, P) of P points, are N masks and give (N,); targets have the same shape. Logits
    (N, C, H, W) are one mask per image and class and give (N, C); targets have the same shape, or are labels (N, H, W),
    of which those outside 0..C-1 belong to no mask.
    """

    use_sigmoid = True

    def __init__(self, smooth: float = 1.0, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        """
        Args:
            smooth: added to numerator and divisor.
        """
        super().__init__(reduction, loss_weight)
        self.smooth = smooth

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        if pred.ndim == 4 and target.ndim == 3:
            check_labels(target, pred[:, 0].shape)
            target = one_hot(target, pred.shape[1]).movedim(-1, 1)
        check_same_shape(pred, target, ", or labels (N, H, W) for logits (N, C, H, W)")
        if pred.ndim < 4:
            return dice_loss(pred, target, smooth=self.smooth)
        per_mask = dice_loss(pred.flatten(0, 1), target.flatten(0, 1), smooth=self.smooth)  # (N * C,)
        return per_mask.view(pred.shape[:2])
