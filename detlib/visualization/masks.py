"""Masks in every format that annotations and predictions use, and their outlines.

A mask is one of: a list of polygons (flat [x0, y0, x1, y1, ...] or (N, 2)), a COCO RLE dict, an (H, W) array or tensor.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch

__all__ = ["interior_point", "mask_rings", "polygon_points", "split_masks", "to_bitmask"]


def split_masks(masks: Any) -> list[Any]:
    """One mask per object, from a BitMasks, PolygonMasks, an (N, H, W) array or tensor, or a list of masks."""
    if hasattr(masks, "polygons"):
        masks = masks.polygons
    elif isinstance(getattr(masks, "tensor", None), torch.Tensor):
        masks = masks.tensor
    if isinstance(masks, torch.Tensor):
        masks = masks.detach().cpu().numpy()
    return list(masks)


def polygon_points(polygon: Any) -> np.ndarray:
    """A polygon as an array (N, 2) of x and y."""
    return np.asarray(polygon, dtype=np.float64).reshape(-1, 2)


def to_bitmask(mask: Any, height: int, width: int) -> np.ndarray:
    """The mask as an array (height, width) of bool; probabilities are cut at 0.5."""
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    if isinstance(mask, (list, tuple)):
        bitmask = _rasterize(mask, height, width)
    elif isinstance(mask, dict):
        bitmask = _decode_rle(mask)
    else:
        bitmask = np.asarray(mask)
    if bitmask.shape != (height, width):
        raise ValueError(f"got a mask of shape {bitmask.shape}, expected that of the image, {(height, width)}")
    return bitmask > 0.5 if bitmask.dtype.kind == "f" else bitmask.astype(bool, copy=False)


def mask_rings(mask: Any, height: int, width: int, min_area: float = 0) -> list[np.ndarray]:
    """The closed outlines of a mask, holes in the opposite direction to what surrounds them.

    Args:
        mask: in any format.
        height: of the image.
        width: of the image.
        min_area: connected parts with fewer pixels than this are left out.

    Returns:
        (N, 2) x and y of each outline.
    """
    if isinstance(mask, (list, tuple)):
        rings = [polygon_points(polygon) for polygon in mask]
        areas = [_signed_area(ring) for ring in rings]
        # One direction for all, as overlapping parts of opposite directions would cancel.
        return [
            ring[:: -1 if area < 0 else 1] for ring, area in zip(rings, areas, strict=True) if abs(area) >= min_area
        ]
    return _trace(to_bitmask(mask, height, width), min_area)


def _trace(bitmask: np.ndarray, min_area: float) -> list[np.ndarray]:
    from contourpy import FillType, contour_generator

    window = _bounding_window(bitmask)
    if window is None:
        return []
    rows, columns = window
    # A border of zeros closes the outlines of parts that touch the edge of the window.
    padded = np.pad(bitmask[rows, columns], 1).astype(np.float32)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    # Samples sit in the middle of pixels; the border moved them by one.
    shift = np.array([columns.start - 0.5, rows.start - 0.5])
    rings = []
    for points, starts in zip(*generator.filled(0.5, 2.0), strict=True):
        part = [points[start:end] + shift for start, end in pairwise(starts)]
        # Holes count negative. What is cut off at the corners of a small part must not make it vanish.
        if abs(sum(_signed_area(ring) for ring in part)) + 1 >= min_area:
            rings += part
    return rings


def interior_point(bitmask: np.ndarray, grid: int = 64) -> tuple[float, float] | None:
    """x and y of the middle of the mask's thickest part, where a label hides the least of its outline.

    Args:
        bitmask: (H, W) array of bool.
        grid: number of cells per side at which the place is searched.

    Returns:
        None for an empty mask.
    """
    window = _bounding_window(bitmask)
    if window is None:
        return None
    rows, columns = window
    crop = bitmask[rows, columns]
    step = -(-max(crop.shape) // grid)
    cells = np.pad(crop[step // 2 :: step, step // 2 :: step], 1)
    if not cells.any():
        y, x = np.argwhere(crop)[0]
        return columns.start + x + 0.5, rows.start + y + 0.5
    while (eroded := _erode(cells)).any():
        cells = eroded
    survivors = np.argwhere(cells) - 1
    distance = np.abs(survivors - survivors.mean(axis=0)).sum(axis=1)
    y, x = survivors[distance.argmin()] * step + step // 2
    return float(columns.start + x + 0.5), float(rows.start + y + 0.5)


def _bounding_window(bitmask: np.ndarray) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(bitmask.any(axis=1)), np.flatnonzero(bitmask.any(axis=0))
    if len(rows) == 0:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _erode(cells: np.ndarray) -> np.ndarray:
    """Cells whose four neighbours are set; the outermost cells are never set."""
    eroded = np.zeros_like(cells)
    inner = cells[1:-1, 1:-1] & cells[:-2, 1:-1] & cells[2:, 1:-1] & cells[1:-1, :-2] & cells[1:-1, 2:]
    eroded[1:-1, 1:-1] = inner
    return eroded


def _signed_area(points: np.ndarray) -> float:
    x, y = points.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _rasterize(polygons: Any, height: int, width: int) -> np.ndarray:
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    from pycocotools import mask as coco_mask

    rles = coco_mask.frPyObjects([polygon_points(polygon).reshape(-1).tolist() for polygon in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(rles))


def _decode_rle(rle: dict[str, Any]) -> np.ndarray:
    from pycocotools import mask as coco_mask

    if isinstance(rle["counts"], (list, tuple)):
        rle = coco_mask.frPyObjects(rle, *rle["size"])
    return coco_mask.decode(rle)
