"""Losses as pure functions of tensors; :mod:`detlib.modeling.loss` has them as modules with weights.

Focal and smooth L1 loss are fvcore's. The IoU losses are here because those of fvcore and torchvision pick the
overlapping pairs by a boolean mask, for which a GPU has to wait, and give NaN for boxes without height.
"""

import math

import torch
from torch import Tensor

from detlib.layers._fvcore import sigmoid_focal_loss, smooth_l1_loss

__all__ = [
    "ciou_loss",
    "dice_loss",
    "diou_loss",
    "giou_loss",
    "iou_loss",
    "reduce_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "upcast",
]


def iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", mode: str = "log", eps: float = 1e-6) -> Tensor:
    """Loss of the plain IoU, which has no gradient for boxes that do not overlap.

    Args:
        boxes1: (N, 4), XYXY.
        boxes2: (N, 4), XYXY; box i is compared with box i of ``boxes1``.
        reduction: "none", "mean" (0 for no boxes) or "sum".
        mode: "log", -ln(IoU) of UnitBox (https://arxiv.org/abs/1608.01471); "linear", 1 - IoU; "square", 1 - IoU^2.
        eps: least IoU in the logarithm.
    """
    iou, _ = _iou_and_union(upcast(boxes1), upcast(boxes2), eps=1e-7)
    if mode == "log":
        return reduce_loss(-iou.clamp(min=eps).log(), reduction)
    if mode == "linear":
        return reduce_loss(1 - iou, reduction)
    if mode == "square":
        return reduce_loss(1 - iou.square(), reduction)
    raise ValueError(f"mode is {mode!r}; expected 'log', 'linear' or 'square'")


def giou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Generalized IoU loss, 1 - IoU + (C - U) / C with the union U and the enclosing box C.

    Eq. in Algorithm 1 of https://arxiv.org/abs/1902.09630.

    Args:
        boxes1: (N, 4), XYXY.
        boxes2: (N, 4), XYXY; box i is compared with box i of ``boxes1``.
        reduction: "none", "mean" (0 for no boxes) or "sum".
        eps: added to the divisors.
    """
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    iou, union = _iou_and_union(boxes1, boxes2, eps)
    width, height = _enclosing_size(boxes1, boxes2)
    enclosing = width * height
    return reduce_loss(1 - iou + (enclosing - union) / (enclosing + eps), reduction)


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Distance IoU loss, 1 - IoU + d^2 / c^2 with the distance d of the centers and the enclosing box's diagonal c.

    Eq. 7 of https://arxiv.org/abs/1911.08287. Arguments as for :func:`giou_loss`.
    """
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    iou, _ = _iou_and_union(boxes1, boxes2, eps)
    return reduce_loss(1 - iou + _center_penalty(boxes1, boxes2, eps), reduction)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Complete IoU loss: :func:`diou_loss` + alpha v, where v compares the aspect ratios.

    Eq. 8 to 11 of https://arxiv.org/abs/1911.08287; alpha counts as a constant in the gradient. Arguments as for
    :func:`giou_loss`.
    """
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    iou, _ = _iou_and_union(boxes1, boxes2, eps)
    v = (4 / math.pi**2) * (_aspect_angle(boxes2) - _aspect_angle(boxes1)).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return reduce_loss(1 - iou + _center_penalty(boxes1, boxes2, eps) + alpha * v, reduction)


def dice_loss(logits: Tensor, targets: Tensor, reduction: str = "none", smooth: float = 1.0) -> Tensor:
    """Dice loss of masks, 1 - (2 |P T| + s) / (|P| + |T| + s) with probabilities P and targets T.

    As in https://arxiv.org/abs/2005.12872 (DETR), appendix A.2; V-Net (https://arxiv.org/abs/1606.04797) squares the
    terms of the divisor.

    Args:
        logits: (N, ...), one mask per row.
        targets: (N, ...), 0 or 1, or soft.
        reduction: "none", "mean" (0 for no masks) or "sum".
        smooth: s, which makes the loss of an empty mask 0 if nothing is predicted.
    """
    probabilities, targets = upcast(logits).sigmoid().flatten(1), upcast(targets).flatten(1)
    overlap = (probabilities * targets).sum(dim=1)
    total = probabilities.sum(dim=1) + targets.sum(dim=1)
    return reduce_loss(1 - (2 * overlap + smooth) / (total + smooth), reduction)


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """Reduce the elements of a loss: "none", "mean" (0 for no elements) or "sum"."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() else loss.sum()
    raise ValueError(f"reduction is {reduction!r}; expected 'none', 'mean' or 'sum'")


def upcast(x: Tensor) -> Tensor:
    """At least float32: areas and sums are soon beyond the range of float16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _iou_and_union(boxes1: Tensor, boxes2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    width, height = (high - low).clamp(min=0).unbind(dim=-1)
    intersection = width * height
    union = _area(boxes1) + _area(boxes2) - intersection
    return intersection / (union + eps), union


def _area(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(dim=-1)
    return width * height


def _enclosing_size(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    high = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    width, height = (high - low).unbind(dim=-1)
    return width, height


def _center_penalty(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    width, height = _enclosing_size(boxes1, boxes2)
    doubled_offset = boxes1[..., :2] + boxes1[..., 2:] - boxes2[..., :2] - boxes2[..., 2:]
    return doubled_offset.square().sum(dim=-1) / 4 / (width.square() + height.square() + eps)


def _aspect_angle(boxes: Tensor) -> Tensor:
    """atan(width / height), also for boxes without height."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(dim=-1)
    return torch.atan2(width, height)
