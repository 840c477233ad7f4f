"""From boxes of any size to features of one size, each taken from the feature map that fits the box.

Shapes: N images, L feature maps, R boxes in all images together.
"""

import math

import torch
from torch import Tensor, nn
from torchvision.ops import RoIPool

from detlib.layers import ROIAlign, ROIAlignRotated
from detlib.structures import Boxes, RotatedBoxes
from detlib.utils.errors import ConfigError

__all__ = ["ROIPooler", "assign_boxes_to_levels"]


class ROIPooler(nn.Module):
    """Pool regions out of a feature pyramid (FPN, https://arxiv.org/abs/1612.03144, sec. 4.2)."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        scales: list[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        """
        Args:
            output_size: cells per region, height and width.
            scales: 1 / stride of each feature map, finest first; each is half of the one before.
            sampling_ratio: samples per cell and axis; 0 takes about one per cell of the feature map.
            pooler_type: "ROIAlignV2", "ROIAlign" (boxes not shifted by half a cell, as in the first publication),
                "ROIPool", or "ROIAlignRotated" for rotated boxes.
            canonical_box_size: square root of the area of the boxes that belong to ``canonical_level``.
            canonical_level: where a feature map of stride 2^k is level k.
        """
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level
        self.min_level, self.max_level = _level_of(scales[0]), _level_of(scales[-1])
        if self.max_level - self.min_level + 1 != len(scales):
            raise ConfigError(
                f"regions are pooled from feature maps of strides {[round(1 / scale, 3) for scale in scales]}; each "
                f"must be twice the one before. Change the IN_FEATURES of the head, as in MODEL.ROI_HEADS.IN_FEATURES."
            )
        self.level_poolers = nn.ModuleList(
            _build_pooler(pooler_type, self.output_size, scale, sampling_ratio) for scale in scales
        )

    def forward(
        self, x: list[Tensor], box_lists: list[Boxes | RotatedBoxes], roi_scale_factor: float | None = None
    ) -> Tensor:
        """
        Args:
            x: L feature maps of shape (N, C, H, W), finest first.
            box_lists: of each of N images, in the coordinates of the network's input.
            roi_scale_factor: pool from boxes of this many times the width and height about the same centres, reaching
                outside the image where they do. The feature map of each stays that of the box as it is given.

        Returns:
            (R, C, output height, output width), in the order of the boxes.
        """
        if len(x) != len(self.level_poolers):
            raise ValueError(f"the pooler was built for {len(self.level_poolers)} feature maps, got {len(x)}")
        if len(box_lists) != len(x[0]):
            raise ValueError(f"the feature maps are of {len(x[0])} images, the boxes of {len(box_lists)}")
        rois = _join(box_lists)
        if roi_scale_factor is not None:
            rois = _enlarge(rois, roi_scale_factor)
        if len(x) == 1:
            return self.level_poolers[0](x[0], rois)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        # Sorted by level, the boxes of all levels are told apart by L numbers: the device is waited for once.
        order = levels.argsort(stable=True)
        counts = torch.bincount(levels, minlength=len(x)).tolist()
        rois_of_levels = rois[order].split(counts)
        pooled = [pool(*inputs) for pool, *inputs in zip(self.level_poolers, x, rois_of_levels)]
        return torch.cat(pooled)[order.argsort()]


def assign_boxes_to_levels(
    box_lists: list[Boxes | RotatedBoxes],
    min_level: int,
    max_level: int,
    canonical_box_size: int,
    canonical_level: int,
) -> Tensor:
    """The feature map of each box: one level up for twice the side (FPN, eq. 1).

    Returns:
        (R,) int64; 0 is ``min_level``.
    """
    sizes = torch.cat([boxes.area() for boxes in box_lists]).clamp(min=0).sqrt()
    # A box without area gets the finest level rather than log2(0).
    levels = torch.floor(canonical_level + torch.log2(sizes / canonical_box_size + 1e-8))
    return levels.clamp(min_level, max_level).to(torch.int64) - min_level


class _ROIPool(RoIPool):
    """RoIPool that takes half-precision maps too; a maximum loses nothing in float32."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        dtype = torch.promote_types(input.dtype, torch.float32)
        return super().forward(input.to(dtype), rois.to(dtype)).to(input.dtype)


def _join(box_lists: list[Boxes | RotatedBoxes]) -> Tensor:
    """(R, 1 + box dimension): the number of the image, then the box."""
    numbered = []
    for number, boxes in enumerate(box_lists):
        image = boxes.tensor.new_full((len(boxes), 1), number)
        numbered.append(torch.cat([image, boxes.tensor], dim=1))
    return torch.cat(numbered)


def _enlarge(rois: Tensor, factor: float) -> Tensor:
    """As :func:`_join` gives them, with boxes of ``factor`` times the width and height."""
    if factor <= 0:
        raise ValueError(f"roi_scale_factor is {factor}; it must be above 0")
    if rois.shape[1] == 6:  # Rotated
        image_and_center, size, angle = rois.split([3, 2, 1], dim=1)
        return torch.cat([image_and_center, size * factor, angle], dim=1)
    image, top_left, bottom_right = rois.split([1, 2, 2], dim=1)
    margin = (bottom_right - top_left) * ((factor - 1) / 2)
    return torch.cat([image, top_left - margin, bottom_right + margin], dim=1)


def _level_of(scale: float) -> int:
    level = -math.log2(scale)
    if not math.isclose(level, round(level)):
        raise ConfigError(f"regions are pooled from a feature map of stride {1 / scale}, which is no power of 2.")
    return round(level)


def _build_pooler(pooler_type: str, output_size: tuple[int, int], scale: float, sampling_ratio: int) -> nn.Module:
    if pooler_type == "ROIAlignV2":
        return ROIAlign(output_size, scale, sampling_ratio, aligned=True)
    if pooler_type == "ROIAlign":
        return ROIAlign(output_size, scale, sampling_ratio, aligned=False)
    if pooler_type == "ROIPool":
        return _ROIPool(output_size, scale)
    if pooler_type == "ROIAlignRotated":
        return ROIAlignRotated(output_size, scale, sampling_ratio)
    raise ConfigError(
        f"POOLER_TYPE is {pooler_type!r}; it must be one of ROIAlignV2, ROIAlign, ROIPool and ROIAlignRotated."
    )
