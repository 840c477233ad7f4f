"""Rotated boxes and how they overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from detlib.layers.rotated_boxes import pairwise_iou_rotated
from detlib.structures.boxes import Boxes

__all__ = ["RotatedBoxes", "pairwise_iou"]


class RotatedBoxes(Boxes):
    """N boxes as a float32 tensor (N, 5): center x, center y, width, height, in pixels, and an angle in degrees.

    The angle is counter-clockwise as one sees the image. At 0 the width lies along x and the height along y, which
    points down, so that at 90 the top side of the box has become its left side. An angle plus 180 gives the same
    rectangle with top and bottom exchanged: overlaps and areas are the same, the box as a target is not.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Wrap boxes, without a copy if they are a tensor of float32.

        Args:
            tensor: (N, 5), or anything without elements.
        """
        tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 5)
        if tensor.dim() != 2 or tensor.shape[1] != 5:
            raise ValueError(f"rotated boxes are a tensor of shape (N, 5), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def clone(self) -> RotatedBoxes:
        """A copy with memory of its own."""
        return RotatedBoxes(self.tensor.clone())

    def to(self, device: torch.device, non_blocking: bool = False) -> RotatedBoxes:
        """These boxes on a device."""
        return RotatedBoxes(self.tensor.to(device=device, non_blocking=non_blocking))

    def area(self) -> Tensor:
        """Areas, (N)."""
        return self.tensor[:, 2] * self.tensor[:, 3]

    def normalize_angles(self) -> None:
        """Bring angles to at least -180 and below 180 degrees."""
        angle = torch.remainder(self.tensor[:, 4:] + 180, 360) - 180
        self.tensor = torch.cat([self.tensor[:, :4], angle], dim=1)

    def clip(self, box_size: tuple[int, int], clip_angle_threshold: float = 1.0) -> None:
        """Cut off what lies outside the image, of boxes that are nearly upright; angles are normalized.

        Of other boxes the part inside is no rectangle; they keep their size.

        Args:
            box_size: height and width of the image.
            clip_angle_threshold: largest absolute angle, in degrees, of boxes to clip.
        """
        self.normalize_angles()
        height, width = box_size
        x, y, box_width, box_height, angle = self.tensor.unbind(dim=1)
        upright = angle.abs() <= clip_angle_threshold
        x, box_width = _clip_range(x, box_width, width, upright)
        y, box_height = _clip_range(y, box_height, height, upright)
        self.tensor = torch.stack((x, y, box_width, box_height, angle), dim=1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Whether each box is wider and higher than a threshold, (N) bool."""
        return (self.tensor[:, 2:4] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """Whether all corners of each box lie within the image, (N) bool.

        Args:
            box_size: height and width of the image.
            boundary_threshold: how many pixels a box may reach outside.
        """
        height, width = box_size
        x, y, box_width, box_height, angle = self.tensor.unbind(dim=1)
        cos, sin = torch.deg2rad(angle).cos().abs(), torch.deg2rad(angle).sin().abs()
        reach_x = (box_width * cos + box_height * sin) / 2
        reach_y = (box_width * sin + box_height * cos) / 2
        inside_x = (x - reach_x >= -boundary_threshold) & (x + reach_x < width + boundary_threshold)
        return inside_x & (y - reach_y >= -boundary_threshold) & (y + reach_y < height + boundary_threshold)

    def get_centers(self) -> Tensor:
        """Centers, (N, 2) as x, y."""
        return self.tensor[:, :2]

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Scale in place, as if the image were resized: the tensor that was wrapped changes too.

        With unequal factors a rotated box becomes a parallelogram. It is replaced by the box whose width and height
        are the lengths of its sides, and whose height has the direction of the side that the height became.
        """
        self.tensor[:, 0] *= scale_x
        self.tensor[:, 1] *= scale_y
        angle = torch.deg2rad(self.tensor[:, 4])
        cos, sin = angle.cos(), angle.sin()
        self.tensor[:, 2] *= torch.hypot(scale_x * cos, scale_y * sin)
        self.tensor[:, 3] *= torch.hypot(scale_x * sin, scale_y * cos)
        self.tensor[:, 4] = torch.rad2deg(torch.atan2(scale_x * sin, scale_y * cos))

    def __getitem__(self, item: int | slice | Tensor) -> RotatedBoxes:
        """Choose boxes by a number, a slice, numbers or a mask; the result is RotatedBoxes in each case."""
        if isinstance(item, int):
            return RotatedBoxes(self.tensor[item].view(1, 5))
        chosen = self.tensor[item]
        if chosen.dim() != 2:
            raise IndexError(f"indexing RotatedBoxes with {item!r} gives shape {tuple(chosen.shape)}, not (N, 5)")
        return RotatedBoxes(chosen)

    def __repr__(self) -> str:
        return f"RotatedBoxes({self.tensor})"


def _clip_range(center: Tensor, length: Tensor, limit: int, where: Tensor) -> tuple[Tensor, Tensor]:
    """Center and length of the part of each range in 0 to limit; the same where not ``where``."""
    start = (center - length / 2).clamp(min=0, max=limit)
    end = (center + length / 2).clamp(min=0, max=limit)
    # Rounding must not make a range longer.
    new_length = torch.minimum(length, end - start)
    return torch.where(where, (start + end) / 2, center), torch.where(where, new_length, length)


def pairwise_iou(boxes1: RotatedBoxes, boxes2: RotatedBoxes) -> Tensor:
    """Intersection over union of each box of one list with each of the other, (N, M); 0 for empty boxes."""
    return pairwise_iou_rotated(boxes1.tensor, boxes2.tensor)
