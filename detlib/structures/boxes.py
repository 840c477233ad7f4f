"""Axis-aligned boxes and how they overlap."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, unique
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BoxMode",
    "Boxes",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
]

BoxLike = list[float] | tuple[float, ...] | Tensor | np.ndarray


@unique
class BoxMode(IntEnum):
    """What the numbers of a box mean. The REL modes are relative to the size of the image."""

    XYXY_ABS = 0
    """Left, top, right, bottom, in pixels."""
    XYWH_ABS = 1
    """Left, top, width, height, in pixels, as in COCO."""
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4
    """Center x, center y, width, height, in pixels, and an angle in degrees, counter-clockwise."""

    @staticmethod
    def convert(box: BoxLike, from_mode: BoxMode, to_mode: BoxMode) -> BoxLike:
        """Convert one box or an array of boxes; the result has the type of the input.

        A rotated box becomes the smallest axis-aligned box around it.

        Args:
            box: list or tuple of 4 or 5 numbers, or a tensor or array of shape (..., 4 or 5).

        Raises:
            ValueError: there is no such conversion, or the box has another number of values.
        """
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if from_mode == to_mode:
            return box
        formula = _FORMULAS.get((from_mode, to_mode))
        if formula is None:
            known = ", ".join(f"{a.name} to {b.name}" for a, b in _FORMULAS)
            raise ValueError(f"cannot convert boxes from {from_mode.name} to {to_mode.name}; known: {known}")
        size = 5 if from_mode == BoxMode.XYWHA_ABS else 4
        if isinstance(box, (list, tuple)):
            if len(box) != size or np.ndim(box[0]) > 0:
                raise ValueError(f"a box in {from_mode.name} is {size} numbers (use an array for many), got {box!r}")
            return type(box)(formula(*box))
        if box.shape[-1] != size:
            raise ValueError(f"boxes in {from_mode.name} have shape (..., {size}), got {tuple(box.shape)}")
        stack = torch.stack if isinstance(box, Tensor) else np.stack
        return stack(formula(*(box[..., i] for i in range(size))), -1)


def _xyxy_to_xywh(x0: Any, y0: Any, x1: Any, y1: Any) -> tuple[Any, ...]:
    return x0, y0, x1 - x0, y1 - y0


def _xywh_to_xyxy(x0: Any, y0: Any, width: Any, height: Any) -> tuple[Any, ...]:
    return x0, y0, x0 + width, y0 + height


def _xywh_to_xywha(x0: Any, y0: Any, width: Any, height: Any) -> tuple[Any, ...]:
    return x0 + width / 2, y0 + height / 2, width, height, x0 * 0


def _xywha_to_xyxy(x: Any, y: Any, width: Any, height: Any, angle: Any) -> tuple[Any, ...]:
    lib = torch if isinstance(angle, Tensor) else np
    cos, sin = abs(lib.cos(lib.deg2rad(angle))), abs(lib.sin(lib.deg2rad(angle)))
    half_width, half_height = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


_FORMULAS = {
    (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS): _xyxy_to_xywh,
    (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS): _xywh_to_xyxy,
    (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS): _xywh_to_xywha,
    (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS): _xywha_to_xyxy,
}


class Boxes:
    """N boxes as a float32 tensor (N, 4): left, top, right, bottom, in pixels of the image."""

    def __init__(self, tensor: Tensor) -> None:
        """Wrap boxes, without a copy if they are a tensor of float32.

        Args:
            tensor: (N, 4), or anything without elements.
        """
        tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 4)
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise ValueError(f"boxes are a tensor of shape (N, 4), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def clone(self) -> Boxes:
        """A copy with memory of its own."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device) -> Boxes:
        """These boxes on a device."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> Tensor:
        """Areas, (N)."""
        return _area(self.tensor)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Move coordinates outside the image to its border.

        Args:
            box_size: height and width of the image.
        """
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x, y), dim=2).flatten(1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Whether each box is wider and higher than a threshold, (N) bool."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """Whether each box lies within the image, (N) bool.

        Args:
            box_size: height and width of the image.
            boundary_threshold: how many pixels a box may reach outside.
        """
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(dim=1)
        inside_x = (x0 >= -boundary_threshold) & (x1 < width + boundary_threshold)
        return inside_x & (y0 >= -boundary_threshold) & (y1 < height + boundary_threshold)

    def get_centers(self) -> Tensor:
        """Centers, (N, 2) as x, y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply coordinates in place, as if the image were resized: the tensor that was wrapped changes too."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def __getitem__(self, item: int | slice | Tensor) -> Boxes:
        """Choose boxes by a number, a slice, numbers or a mask; the result is Boxes in each case."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, 4))
        chosen = self.tensor[item]
        if chosen.dim() != 2:
            raise IndexError(f"indexing Boxes with {item!r} gives shape {tuple(chosen.shape)}, not (N, 4)")
        return Boxes(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Boxes one by one, as tensors (4)."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    @classmethod
    def cat(cls, boxes_list: list[Boxes]) -> Boxes:
        """All boxes of a list, which may be empty."""
        if not boxes_list:
            return cls(torch.empty(0))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> torch.device:
        return self.tensor.device


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Area of the intersection of each box of one list with each of the other, (N, M)."""
    return _intersection(boxes1.tensor[:, None], boxes2.tensor[None])


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    # One side at a time and in place: no temporary is larger than the result.
    width = torch.minimum(a[..., 2], b[..., 2]).sub_(torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = torch.minimum(a[..., 3], b[..., 3]).sub_(torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    return width.mul_(height)


def _ratio(intersection: Tensor, area: Tensor) -> Tensor:
    """Quotient, in the memory of its arguments."""
    # Where boxes are empty both are 0; elsewhere the area is far from the smallest float.
    return intersection.div_(area.clamp_(min=torch.finfo(area.dtype).tiny))


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over union of each box of one list with each of the other, (N, M); 0 for empty boxes."""
    intersection = pairwise_intersection(boxes1, boxes2)
    union = (boxes1.area()[:, None] + boxes2.area()).sub_(intersection)
    return _ratio(intersection, union)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over the area of the second box, for each pair, (N, M); 0 for empty boxes."""
    return _ratio(pairwise_intersection(boxes1, boxes2), boxes2.area())


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over union of box i of one list with box i of the other, (N); 0 for empty boxes."""
    if len(boxes1) != len(boxes2):
        raise ValueError(f"boxes to compare one by one must be equally many, got {len(boxes1)} and {len(boxes2)}")
    intersection = _intersection(boxes1.tensor, boxes2.tensor)
    return _ratio(intersection, boxes1.area() + boxes2.area() - intersection)


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """Signed distances of points to the four sides of boxes; all are positive if the point is inside.

    Args:
        points: (N, 2) as x, y.

    Returns:
        (N, M, 4): to the left, top, right and bottom side.
    """
    x, y = points[:, None].unbind(dim=2)
    x0, y0, x1, y1 = boxes.tensor[None].unbind(dim=2)
    return torch.stack((x - x0, y - y0, x1 - x, y1 - y), dim=2)
