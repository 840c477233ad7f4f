"""Non-maximum suppression."""

import torch
from torch import Tensor
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

from detlib.layers.rotated_boxes import pairwise_iou_rotated

__all__ = ["batched_nms", "batched_nms_rotated", "nms", "nms_rotated"]

# So many boxes are compared with all that have lower scores, before those which they suppress are dropped.
_BOXES_PER_BLOCK = 512


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress, within each group, the boxes that overlap one of a higher score.

    Args:
        boxes: (N, 4), XYXY, of any float type; overlaps are computed in float32.
        scores: (N), of any float type.
        idxs: (N), the group of each box, such as its class or feature level.
        iou_threshold: a box is dropped if its IoU with a kept one is greater.

    Returns:
        Indices of the kept boxes, by falling score.
    """
    # Coordinates of float16 are off by half a pixel beyond 1024.
    return box_ops.batched_nms(boxes.float(), scores.float(), idxs, iou_threshold)


@torch.no_grad()
def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Suppress the rotated boxes that overlap one of a higher score.

    Args:
        boxes: (N, 5), as in :class:`~detlib.structures.RotatedBoxes`, of any float type.
        scores: (N).
        iou_threshold: a box is dropped if its IoU with a kept one is greater.

    Returns:
        Indices of the kept boxes, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    # Overlaps need float64, which MPS lacks.
    left = boxes[order].cpu() if boxes.device.type == "mps" else boxes[order]
    left_index = torch.arange(len(left), device=left.device)
    kept = [left_index[:0]]
    while len(left):
        block, left = left[:_BOXES_PER_BLOCK], left[_BOXES_PER_BLOCK:]
        block_index, left_index = left_index[:_BOXES_PER_BLOCK], left_index[_BOXES_PER_BLOCK:]
        survives = _survivors((pairwise_iou_rotated(block, block) > iou_threshold).triu(diagonal=1))
        kept.append(block_index[survives])
        clear = ~(pairwise_iou_rotated(block[survives], left) > iou_threshold).any(dim=0)
        left, left_index = left[clear], left_index[clear]
    return order[torch.cat(kept).to(order.device)]


def batched_nms_rotated(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress, within each group, the rotated boxes that overlap one of a higher score.

    Args:
        boxes: (N, 5), as in :class:`~detlib.structures.RotatedBoxes`, of any float type.
        scores: (N).
        idxs: (N), the group of each box, such as its class or feature level.
        iou_threshold: a box is dropped if its IoU with a kept one is greater.

    Returns:
        Indices of the kept boxes, by falling score.
    """
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    # Groups are moved apart. In float64 no coordinate loses digits that matter.
    apart = (boxes.detach().cpu() if boxes.device.type == "mps" else boxes.detach()).double()
    reach = apart[:, 2:4].norm(dim=1)
    span = (apart[:, :2] + reach[:, None]).max() - (apart[:, :2] - reach[:, None]).min()
    apart[:, 0] += idxs.to(apart) * span
    return nms_rotated(apart, scores.to(apart.device), iou_threshold).to(boxes.device)


def _survivors(suppresses: Tensor) -> Tensor:
    """Which boxes no surviving box suppresses, (N) bool.

    Args:
        suppresses: (N, N) bool, upper triangular: whether box i, of the higher score, overlaps box j too much.
    """
    survives = torch.ones(len(suppresses), dtype=torch.bool, device=suppresses.device)
    while True:
        # After k rounds all boxes are right whose chains of suppression are shorter than k.
        update = ~(suppresses & survives[:, None]).any(dim=0)
        if torch.equal(update, survives):
            return survives
        survives = update
