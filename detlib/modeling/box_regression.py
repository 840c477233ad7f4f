"""Boxes as regression targets, and the loss of dense box predictions."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detlib.modeling.loss.regression import CIoULoss, DIoULoss, GIoULoss, SmoothL1Loss
from detlib.structures import Boxes
from detlib.utils.errors import ConfigError

__all__ = ["Box2BoxTransform", "Box2BoxTransformLinear", "Box2BoxTransformRotated"]

# One refinement may enlarge a box up to 62.5 times: 1000 pixels over the 16 of the smallest stride that R-CNN used.
# Larger values come from wild predictions and would overflow exp().
_SCALE_CLAMP = math.log(1000.0 / 16)


class Box2BoxTransform:
    """Shift of the centre and log-scale of the size, relative to a source box (R-CNN, arXiv:1311.2524, appendix C)."""

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _SCALE_CLAMP) -> None:
        """
        Args:
            weights: factors of (dx, dy, dw, dh) that bring the targets near to unit variance.
            scale_clamp: upper limit of dw and dh when they are applied.
        """
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Deltas that turn ``src_boxes`` into ``target_boxes``; all are (..., 4), boxes XYXY.

        Source boxes must have a positive width and height.
        """
        src_cxcy, src_wh = _center_and_size(src_boxes)
        target_cxcy, target_wh = _center_and_size(target_boxes)
        deltas = torch.cat([(target_cxcy - src_cxcy) / src_wh, torch.log(target_wh / src_wh)], dim=-1)
        return deltas * deltas.new_tensor(self.weights)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Move (R, 4) XYXY ``boxes`` by (R, k * 4) ``deltas``, in float32.

        Returns:
            (R, k * 4): k boxes for each source box, as for k classes.
        """
        deltas = deltas.float()
        cxcy, wh = (x.unsqueeze(-2) for x in _center_and_size(boxes.to(deltas.dtype)))  # (R, 1, 2)
        scaled = deltas.unflatten(-1, (-1, 4)) / deltas.new_tensor(self.weights)  # (R, k, 4)
        new_cxcy = cxcy + scaled[..., :2] * wh
        half_wh = 0.5 * wh * torch.exp(scaled[..., 2:].clamp(max=self.scale_clamp))
        return torch.cat([new_cxcy - half_wh, new_cxcy + half_wh], dim=-1).flatten(-2)


class Box2BoxTransformRotated:
    """The same for rotated boxes, with the difference of angles in radians (RRPN, arXiv:1703.01086, sec. III-D).

    Centers move along the axes of the image, not of the box.
    """

    def __init__(self, weights: tuple[float, float, float, float, float], scale_clamp: float = _SCALE_CLAMP) -> None:
        """
        Args:
            weights: factors of (dx, dy, dw, dh, da) that bring the targets near to unit variance.
            scale_clamp: upper limit of dw and dh when they are applied.
        """
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Deltas that turn ``src_boxes`` into ``target_boxes``; all are (..., 5), boxes XYWHA.

        Source boxes must have a positive width and height. The turn is the shorter one.
        """
        src_wh = src_boxes[..., 2:4]
        shift = (target_boxes[..., :2] - src_boxes[..., :2]) / src_wh
        log_scale = torch.log(target_boxes[..., 2:4] / src_wh)
        turn = torch.deg2rad(_normalized_degrees(target_boxes[..., 4:] - src_boxes[..., 4:]))
        deltas = torch.cat([shift, log_scale, turn], dim=-1)
        return deltas * deltas.new_tensor(self.weights)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Move (R, 5) XYWHA ``boxes`` by (R, k * 5) ``deltas``, in float32.

        Returns:
            (R, k * 5): k boxes for each source box, as for k classes, with angles of at least -180 and below 180.
        """
        deltas = deltas.float()
        boxes = boxes.to(deltas.dtype).unsqueeze(-2)  # (R, 1, 5)
        wh = boxes[..., 2:4]
        scaled = deltas.unflatten(-1, (-1, 5)) / deltas.new_tensor(self.weights)  # (R, k, 5)
        new_cxcy = boxes[..., :2] + scaled[..., :2] * wh
        new_wh = wh * torch.exp(scaled[..., 2:4].clamp(max=self.scale_clamp))
        angle = _normalized_degrees(boxes[..., 4:] + torch.rad2deg(scaled[..., 4:]))
        return torch.cat([new_cxcy, new_wh, angle], dim=-1).flatten(-2)


class Box2BoxTransformLinear:
    """Distances from the centre of a source box to the sides of the target (FCOS, arXiv:1904.01355, eq. 1)."""

    def __init__(self, normalize_by_size: bool = True) -> None:
        """
        Args:
            normalize_by_size: divide the distances by the width and height of the source box.
        """
        self.normalize_by_size = normalize_by_size

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(left, top, right, bottom) distances; negative where the centre is outside. All are (..., 4), boxes XYXY."""
        cxcy, wh = _center_and_size(src_boxes)
        deltas = torch.cat([cxcy - target_boxes[..., :2], target_boxes[..., 2:] - cxcy], dim=-1)
        return deltas / torch.cat([wh, wh], dim=-1) if self.normalize_by_size else deltas

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes in XYXY format at the given distances, in float32. Negative distances count as 0."""
        deltas = deltas.float().clamp(min=0)
        cxcy, wh = _center_and_size(boxes.to(deltas.dtype))
        if self.normalize_by_size:
            deltas = deltas * torch.cat([wh, wh], dim=-1)
        return torch.cat([cxcy - deltas[..., :2], cxcy + deltas[..., 2:]], dim=-1)


def _normalized_degrees(angle: Tensor) -> Tensor:
    """The same directions, at least -180 and below 180."""
    return torch.remainder(angle + 180, 360) - 180


def _center_and_size(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 2) centres and (..., 2) sizes, x before y."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    wh = bottom_right - top_left
    return top_left + 0.5 * wh, wh


_LOSSES: dict[str, Callable[[], nn.Module]] = {"giou": GIoULoss, "diou": DIoULoss, "ciou": CIoULoss}


def box_loss(box_reg_loss_type: str, smooth_l1_beta: float = 0.0) -> nn.Module:
    """The loss of the keys ``BBOX_REG_LOSS_TYPE`` and ``SMOOTH_L1_BETA``.

    Args:
        box_reg_loss_type: smooth_l1, on the deltas; giou, diou or ciou, on the boxes.
        smooth_l1_beta: where L2 turns into L1; 0 is L1.
    """
    if box_reg_loss_type == "smooth_l1":
        return SmoothL1Loss(beta=smooth_l1_beta)
    if box_reg_loss_type not in _LOSSES:
        known = ", ".join(["smooth_l1", *_LOSSES])
        raise ConfigError(f"BBOX_REG_LOSS_TYPE is {box_reg_loss_type!r}; it must be one of {known}.")
    return _LOSSES[box_reg_loss_type]()


def box_regression_loss(
    box2box_transform: Box2BoxTransform | Box2BoxTransformLinear | Box2BoxTransformRotated,
    src_boxes: Tensor,
    pred_deltas: Tensor,
    gt_boxes: Tensor,
    loss: nn.Module,
    avg_factor: float | Tensor = 1.0,
) -> Tensor:
    """Loss of (R, 4) ``src_boxes`` with (R, 4) deltas, which are to become (R, 4) ``gt_boxes``; (R, 5) if rotated.

    Args:
        loss: of ``LOSS_REGISTRY``. It is given deltas, or upright boxes if it has ``on_boxes``.
        avg_factor: what the sum over all boxes is divided by.
    """
    if getattr(loss, "on_boxes", False):
        if src_boxes.shape[-1] != 4:
            raise ConfigError(
                f"{type(loss).__name__} is for upright boxes; rotated ones need a loss such as SmoothL1Loss."
            )
        pred, target = box2box_transform.apply_deltas(pred_deltas, src_boxes), gt_boxes
    else:
        pred, target = pred_deltas, box2box_transform.get_deltas(src_boxes, gt_boxes)
    if len(pred) == 0:  # Not every loss can be asked about nothing.
        return pred.sum() * 0
    return loss(pred, target, avg_factor=avg_factor)


def dense_box_regression_loss(
    anchors: list[Boxes | Tensor],
    box2box_transform: Box2BoxTransform | Box2BoxTransformLinear,
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    fg_mask: Tensor,
    loss: nn.Module,
    avg_factor: float | Tensor = 1.0,
) -> Tensor:
    """:func:`box_regression_loss` of all foreground anchors of a batch.

    Args:
        anchors: of each feature map, (H * W * A, 4); R in all.
        pred_anchor_deltas: of each feature map, (N, H * W * A, 4).
        gt_boxes: of each image, the (R, 4) box that each anchor is to predict.
        fg_mask: (N, R), True where an anchor has an object.
    """
    all_anchors = torch.cat([x.tensor if isinstance(x, Boxes) else x for x in anchors])  # (R, 4)
    # Only the few foreground anchors are decoded or encoded.
    image_index, anchor_index = fg_mask.nonzero(as_tuple=True)
    fg_anchors = all_anchors[anchor_index]
    fg_deltas = torch.cat(pred_anchor_deltas, dim=1)[image_index, anchor_index]
    fg_gt_boxes = torch.stack(gt_boxes)[image_index, anchor_index]
    return box_regression_loss(box2box_transform, fg_anchors, fg_deltas, fg_gt_boxes, loss, avg_factor)


def _dense_box_regression_loss(
    anchors: list[Boxes | Tensor],
    box2box_transform: Box2BoxTransform | Box2BoxTransformLinear,
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    fg_mask: Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """The sum under the name and with the arguments that projects call; see :func:`dense_box_regression_loss`."""
    loss = box_loss(box_reg_loss_type, smooth_l1_beta)
    return dense_box_regression_loss(anchors, box2box_transform, pred_anchor_deltas, gt_boxes, fg_mask, loss)
