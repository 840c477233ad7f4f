"""Overlap of rotated boxes: (center x, center y, width, height, angle in degrees, counter-clockwise as one sees it).

Shapes: N and M boxes, P pairs of them.
"""

import torch
from torch import Tensor

__all__ = ["pairwise_iou_rotated"]

# Temporaries of a block of pairs take some 100 MB.
_PAIRS_PER_BLOCK = 2**21
# Those of a part of the pairs that are near stay in the cache of a processor; accelerators want much work at a time.
_NEAR_PAIRS_PER_PART = {"cpu": 2**15}


@torch.no_grad()
def pairwise_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of each box of one list with each of the other; 0 for boxes without area.

    Areas are computed in float64, or in float32 on devices without it. There is no gradient.

    Args:
        boxes1: (N, 5).
        boxes2: (M, 5).

    Returns:
        (N, M), in float32 unless a list has float64.
    """
    for boxes in (boxes1, boxes2):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise ValueError(f"rotated boxes have shape (N, 5), got {tuple(boxes.shape)}")
    result_dtype = torch.promote_types(torch.promote_types(boxes1.dtype, boxes2.dtype), torch.float32)
    dtype = torch.float32 if boxes1.device.type == "mps" else torch.float64
    boxes1, boxes2 = boxes1.to(dtype), boxes2.to(dtype)
    iou = torch.zeros(len(boxes1), len(boxes2), dtype=result_dtype, device=boxes1.device)
    if iou.numel() == 0:
        return iou
    rows = max(1, _PAIRS_PER_BLOCK // len(boxes2))
    for block1, block_iou in zip(boxes1.split(rows), iou.split(rows)):
        _fill_where_near(block1, boxes2, block_iou)
    return iou


def _fill_where_near(boxes1: Tensor, boxes2: Tensor, iou: Tensor) -> None:
    """Write the overlaps of the pairs whose circumscribed circles overlap into (N, M) zeros.

    Accelerators wait here for the number of those pairs. That is quicker than to compute all: few of them are near.
    """
    radius1, radius2 = (boxes[:, 2:4].norm(dim=1) / 2 for boxes in (boxes1, boxes2))
    offset_x = boxes1[:, None, 0] - boxes2[:, 0]
    offset_y = boxes1[:, None, 1] - boxes2[:, 1]
    near = offset_x.square_().add_(offset_y.square_()) < (radius1[:, None] + radius2).square_()
    index1, index2 = near.nonzero(as_tuple=True)
    part = _NEAR_PAIRS_PER_PART.get(iou.device.type, _PAIRS_PER_BLOCK)
    for i, j in zip(index1.split(part), index2.split(part)):
        iou[i, j] = _iou(boxes1.T[:, i].unbind(), boxes2.T[:, j].unbind()).to(iou.dtype)


def _iou(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """Overlap of boxes whose five numbers are given as tensors that broadcast to the pairs."""
    area_a, area_b = (box[2].clamp(min=0) * box[3].clamp(min=0) for box in (a, b))
    smaller_area = torch.minimum(area_a, area_b)
    intersection = torch.minimum(_intersection(a, b), smaller_area)
    # Of boxes that only touch, rounding leaves a sliver.
    sliver = 64 * torch.finfo(intersection.dtype).eps * smaller_area
    intersection = torch.where(intersection > sliver, intersection, 0)
    return intersection / (area_a + area_b - intersection).clamp(min=torch.finfo(intersection.dtype).tiny)


def _intersection(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """Area of the intersection, which is a sum over the four sides of box a.

    In the frame of box b, that is |x| <= w / 2 and |y| <= h / 2, the intersection is

        integral of clamp(y_max(x), -h / 2, h / 2) - clamp(y_min(x), -h / 2, h / 2) dx, |x| <= w / 2,

    with y_max and y_min the upper and lower sides of box a at x. Taken side by side of box a, each integral has a
    closed form that is continuous in all numbers, so equal, parallel and touching sides need no special care.
    """
    center_x, center_y, half_ux, half_uy, half_vx, half_vy = _in_frame_of(a, b)
    half_width, half_height = b[2].clamp(min=0) / 2, b[3].clamp(min=0) / 2
    # The origin is the center of box a; box b is x0 to x1 and y0 to y1.
    x0, x1 = -half_width - center_x, half_width - center_x
    y0, y1 = -half_height - center_y, half_height - center_y
    # Opposite sides run in the same direction and count with opposite signs.
    ux, uy, vx, vy = 2 * half_ux, 2 * half_uy, 2 * half_vx, 2 * half_vy
    area = _integral_under(half_vx - half_ux, half_vy - half_uy, ux, uy, x0, x1, y0, y1)
    area -= _integral_under(-half_vx - half_ux, -half_vy - half_uy, ux, uy, x0, x1, y0, y1)
    area += _integral_under(-half_vx - half_ux, -half_vy - half_uy, vx, vy, x0, x1, y0, y1)
    area -= _integral_under(half_ux - half_vx, half_uy - half_vy, vx, vy, x0, x1, y0, y1)
    return area


def _in_frame_of(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Center of box a in the frame of box b, and the vectors to the middles of two of its sides."""
    angle_b = torch.deg2rad(b[4])
    cos, sin = angle_b.cos(), angle_b.sin()
    offset_x, offset_y = a[0] - b[0], a[1] - b[1]
    center_x, center_y = offset_x * cos - offset_y * sin, offset_x * sin + offset_y * cos
    # A box is the same after half a turn; the remainder is exact.
    angle = torch.deg2rad(torch.remainder(a[4] - b[4] + 90, 180) - 90)
    cos, sin = angle.cos(), angle.sin()
    half_width, half_height = a[2].clamp(min=0) / 2, a[3].clamp(min=0) / 2
    return center_x, center_y, half_width * cos, -half_width * sin, half_height * sin, half_height * cos


def _integral_under(
    x: Tensor, y: Tensor, dx: Tensor, dy: Tensor, x0: Tensor, x1: Tensor, y0: Tensor, y1: Tensor
) -> Tensor:
    """Integral of clamp(y, y0, y1) dx along the part of the segment from (x, y) to (x + dx, y + dy) in x0 to x1."""
    from_x = torch.minimum(torch.maximum(x, x0), x1)
    to_x = torch.minimum(torch.maximum(x + dx, x0), x1)
    divisor = torch.where(dx == 0, 1, dx)
    from_y = ((from_x - x) / divisor).clamp_(0, 1).mul_(dy).add_(y)
    to_y = ((to_x - x) / divisor).clamp_(0, 1).mul_(dy).add_(y)
    low = torch.minimum(torch.maximum(from_y, y0), y1)
    high = torch.minimum(torch.maximum(to_y, y0), y1)
    # The mean along a line that is flat where clamped: (low + high) / 2, moved towards the end with the longer flat.
    tiny = torch.finfo(x.dtype).tiny
    steepness = (low - high) / (to_y - from_y).abs_().clamp_(min=tiny)
    flat = (from_y - low).abs_().sub_((to_y - high).abs_())
    return flat.mul_(steepness).add_(low).add_(high).mul_(to_x - from_x).mul_(0.5)
