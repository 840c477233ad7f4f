"""Non-maximum suppression."""

from torch import Tensor
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress, within each group, the boxes that overlap one of a higher score.

    Args:
        boxes: (N, 4), XYXY, of any float type; overlaps are computed in float32.
        scores: (N).
        idxs: (N), the group of each box, such as its class or feature level.
        iou_threshold: a box is dropped if its IoU with a kept one is greater.

    Returns:
        Indices of the kept boxes, by falling score.
    """
    # Coordinates of float16 are off by half a pixel beyond 1024.
    return box_ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
