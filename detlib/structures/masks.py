"""Masks of objects: as bitmaps of the image, as polygons, and as small grids within boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detlib.layers.mask_ops import paste_masks_in_image
from detlib.layers.roi_align import ROIAlign
from detlib.structures.boxes import Boxes

__all__ = [
    "BitMasks",
    "PolygonMasks",
    "ROIMasks",
    "polygon_area",
    "polygons_to_bitmask",
    "rasterize_polygons_within_box",
]


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area of a polygon from its corners, by the shoelace formula."""
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Draw the union of polygons as COCO does.

    Args:
        polygons: flat arrays x0, y0, x1, y1, ...; none give an empty mask.

    Returns:
        (height, width) bool.
    """
    from pycocotools import mask as coco_mask

    if not polygons:
        return np.zeros((height, width), dtype=bool)
    runs = coco_mask.frPyObjects(list(polygons), height, width)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def rasterize_polygons_within_box(polygons: list[np.ndarray], box: np.ndarray, mask_size: int) -> Tensor:
    """Draw the part of polygons that lies in a box onto a square grid.

    Args:
        polygons: as for :func:`polygons_to_bitmask`.
        box: XYXY, in the coordinates of the polygons.
        mask_size: cells per side of the grid.

    Returns:
        (mask_size, mask_size) bool.
    """
    corner = np.asarray(box[:2], dtype=np.float64)
    # Boxes thinner than a tenth of a pixel would blow polygons up without limit.
    scale = mask_size / np.maximum(np.asarray(box[2:], dtype=np.float64) - corner, 0.1)
    moved = [((np.asarray(p).reshape(-1, 2) - corner) * scale).reshape(-1) for p in polygons]
    return torch.from_numpy(polygons_to_bitmask(moved, mask_size, mask_size))


class BitMasks:
    """N masks of one image as a bool tensor (N, H, W).

    Attributes:
        image_size: H and W.
    """

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
        """Wrap masks, without a copy if they are bool."""
        tensor = torch.as_tensor(tensor, dtype=torch.bool)
        if tensor.dim() != 3:
            raise ValueError(f"bitmaps of objects have shape (N, H, W), got {tuple(tensor.shape)}")
        self.image_size = (tensor.shape[1], tensor.shape[2])
        self.tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """The masks after ``tensor.to`` with these arguments."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> BitMasks:
        """Choose masks by a number, a slice, numbers or a mask; the result is BitMasks in each case."""
        if isinstance(item, int):
            return BitMasks(self.tensor[item].unsqueeze(0))
        return BitMasks(self.tensor[item])

    def __iter__(self) -> Iterator[Tensor]:
        """Masks one by one, as tensors (H, W)."""
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)}, image_size={self.image_size})"

    def nonempty(self) -> Tensor:
        """Whether each mask has any pixel, (N) bool."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[list[np.ndarray]], height: int, width: int) -> BitMasks:
        """Draw polygons, object by object."""
        polygons = polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        masks = np.zeros((len(polygons), height, width), dtype=bool)
        for mask, polygons_of_object in zip(masks, polygons, strict=True):
            mask[:] = polygons_to_bitmask(polygons_of_object, height, width)
        return BitMasks(masks)

    @staticmethod
    def from_roi_masks(roi_masks: ROIMasks, height: int, width: int) -> BitMasks:
        """Not possible without the boxes: use :meth:`ROIMasks.to_bitmasks`."""
        raise NotImplementedError("ROIMasks do not know their boxes; call roi_masks.to_bitmasks(boxes, height, width)")

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Resample the part of each mask that lies in its box: targets of a mask head.

        Args:
            boxes: (N, 4), XYXY; box i belongs to mask i.

        Returns:
            (N, mask_size, mask_size) bool.
        """
        _check_equally_many(self, boxes)
        numbers = torch.arange(len(boxes), device=self.device, dtype=torch.float32)
        rois = torch.cat([numbers[:, None], boxes.to(self.device, torch.float32)], dim=1)
        pool = ROIAlign((mask_size, mask_size), spatial_scale=1.0, sampling_ratio=0, aligned=True)
        return pool(self.tensor[:, None].float(), rois).squeeze(1) >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """The smallest box around the pixels of each mask; zeros if it has none."""
        x0, x1 = _extent(self.tensor.any(dim=1))
        y0, y1 = _extent(self.tensor.any(dim=2))
        return Boxes(torch.stack([x0, y0, x1, y1], dim=1))

    @staticmethod
    def cat(bitmasks_list: list[BitMasks]) -> BitMasks:
        """All masks of a list, which has at least one item."""
        return BitMasks(torch.cat([bitmasks.tensor for bitmasks in bitmasks_list], dim=0))


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First index at which each row of (N, L) is true, and the last plus 1; zeros if there is none."""
    length = occupied.shape[1]
    index = torch.arange(length, device=occupied.device)
    if length == 0:
        return (index.new_zeros(len(occupied)),) * 2
    high = torch.where(occupied, index + 1, 0).amax(dim=1)
    low = torch.where(occupied, index, length).amin(dim=1)
    return torch.minimum(low, high), high


def _check_equally_many(masks: BitMasks | PolygonMasks, boxes: Tensor) -> None:
    if len(masks) != len(boxes):
        raise ValueError(f"each mask is cropped to its box, but there are {len(masks)} masks and {len(boxes)} boxes")


class PolygonMasks:
    """The polygons of N objects of one image, which stay on the CPU.

    Attributes:
        polygons: for each object a list of flat float64 arrays x0, y0, x1, y1, ...
    """

    def __init__(self, polygons: list[list[Tensor | np.ndarray]]) -> None:
        """Copy polygons of at least three corners each.

        Raises:
            ValueError: a polygon has fewer corners, an odd number of values, or is not within a list per object.
        """
        if not isinstance(polygons, (list, tuple)):
            raise ValueError(f"polygons are a list with a list of arrays per object, got {type(polygons).__name__}")
        self.polygons = [_polygons_of_object(i, item) for i, item in enumerate(polygons)]

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """The same object: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> PolygonMasks:
        """Choose objects by a number, a slice, numbers or a mask; the result is PolygonMasks in each case."""
        if isinstance(item, int):
            return self._of([self.polygons[item]])
        if isinstance(item, slice):
            return self._of(self.polygons[item])
        item = torch.as_tensor(item)
        if item.dtype == torch.bool:
            item = item.nonzero()[:, 0]
        return self._of([self.polygons[i] for i in item.tolist()])

    @classmethod
    def _of(cls, checked_polygons: list[list[np.ndarray]]) -> PolygonMasks:
        masks = cls([])
        masks.polygons = checked_polygons
        return masks

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """The lists of polygons, object by object."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def nonempty(self) -> Tensor:
        """Whether each object has any polygon, (N) bool."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def area(self) -> Tensor:
        """Area of each object, (N); where polygons of an object overlap, it counts twice."""
        return torch.tensor(
            [sum(polygon_area(p[0::2], p[1::2]) for p in polygons) for polygons in self.polygons], dtype=torch.float32
        )

    def get_bounding_boxes(self) -> Boxes:
        """The smallest box around the corners of each object; zeros if it has none."""
        boxes = torch.zeros(len(self), 4)
        for box, polygons in zip(boxes, self.polygons, strict=True):
            if polygons:
                corners = np.concatenate(polygons).reshape(-1, 2)
                box[:] = torch.from_numpy(np.concatenate([corners.min(axis=0), corners.max(axis=0)]))
        return Boxes(boxes)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Draw the part of each object that lies in its box: targets of a mask head.

        Args:
            boxes: (N, 4), XYXY; box i belongs to object i.

        Returns:
            (N, mask_size, mask_size) bool, on the device of the boxes.
        """
        _check_equally_many(self, boxes)
        masks = torch.zeros(len(self), mask_size, mask_size, dtype=torch.bool)
        for mask, polygons, box in zip(masks, self.polygons, boxes.detach().cpu().numpy(), strict=True):
            mask[:] = rasterize_polygons_within_box(polygons, box, mask_size)
        return masks.to(boxes.device)

    @staticmethod
    def cat(polymasks_list: list[PolygonMasks]) -> PolygonMasks:
        """All objects of a list, which may be empty."""
        return PolygonMasks._of([polygons for masks in polymasks_list for polygons in masks.polygons])


def _polygons_of_object(i: int, polygons: Any) -> list[np.ndarray]:
    if not isinstance(polygons, (list, tuple)):
        raise ValueError(f"object {i}: expected a list of polygons, got {type(polygons).__name__}")
    arrays = [np.array(p.cpu() if isinstance(p, Tensor) else p, dtype=np.float64) for p in polygons]
    for array in arrays:
        if array.ndim != 1 or array.size < 6 or array.size % 2:
            raise ValueError(
                f"object {i}: a polygon is a flat array x0, y0, x1, y1, ... of at least 3 corners, "
                f"got one of shape {array.shape}"
            )
    return arrays


class ROIMasks:
    """N masks as a float tensor (N, M, M), each of which covers the box of its object."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dim() != 3:
            raise ValueError(f"masks within boxes have shape (N, M, M), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device) -> ROIMasks:
        """These masks on a device."""
        return ROIMasks(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item: int | slice | Tensor) -> ROIMasks:
        """Choose masks by a number, a slice, numbers or a mask; the result is ROIMasks in each case."""
        chosen = self.tensor[item]
        return ROIMasks(chosen.unsqueeze(0) if isinstance(item, int) else chosen)

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)}, mask_size={tuple(self.tensor.shape[1:])})"

    def to_bitmasks(self, boxes: Boxes, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Draw each mask into an image.

        Args:
            boxes: the boxes of the masks, as Boxes or as a tensor (N, 4), XYXY.
            threshold: values of at least this are pixels of the object.
        """
        return BitMasks(paste_masks_in_image(self.tensor, boxes, (height, width), threshold))
