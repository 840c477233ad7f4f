"""Points on feature maps, masks and labels, and which of them are worth a look (PointRend, sec. 3.1 and 3.2).

Shapes: N images, R regions in all images together (R_i in image i), or either of them, P points in each, C channels.
Coordinates of points are (x, y) in [0, 1] x [0, 1]: (0, 0) is the upper left corner of the map or box, not the center
of its first cell.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detlib.structures import BitMasks, Boxes, Instances, PolygonMasks

__all__ = [
    "generate_regular_grid_point_coords",
    "get_point_coords_wrt_image",
    "get_uncertain_point_coords_on_grid",
    "get_uncertain_point_coords_with_randomness",
    "point_sample",
    "point_sample_fine_grained_features",
    "sample_point_classes",
    "sample_point_labels",
]


def point_sample(input: Tensor, point_coords: Tensor, **kwargs: Any) -> Tensor:
    """Bilinear values of maps at points; beyond the maps there are zeros.

    Args:
        input: (N, C, H, W).
        point_coords: (N, P, 2), or (N, height, width, 2) for points in a grid.
        kwargs: those of :func:`torch.nn.functional.grid_sample`; ``align_corners`` is False unless given.

    Returns:
        (N, C, P), or (N, C, height, width), in the type of ``input``.
    """
    is_list = point_coords.dim() == 3
    grid = 2 * (point_coords.unsqueeze(2) if is_list else point_coords) - 1
    # Half precision is too coarse for coordinates: in bfloat16, four pixels of a thousand.
    dtype = torch.promote_types(input.dtype, grid.dtype)
    output = F.grid_sample(input.to(dtype), grid.to(dtype), **{"align_corners": False, **kwargs}).to(input.dtype)
    return output.squeeze(3) if is_list else output


def generate_regular_grid_point_coords(R: int, side_size: int, device: torch.device) -> Tensor:
    """The centers of the cells of a square grid, row by row, for each of R regions: (R, side_size ** 2, 2)."""
    centers = (torch.arange(side_size, device=device, dtype=torch.float32) + 0.5) / side_size
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(R, -1, -1)


def get_uncertain_point_coords_with_randomness(
    coarse_logits: Tensor,
    uncertainty_func: Callable[[Tensor], Tensor],
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> Tensor:
    """Points to train on: mostly uncertain ones, the others anywhere (sec. 3.1, "Point Selection ... Training").

    Args:
        coarse_logits: (N, C, H, W).
        uncertainty_func: from (N, C, P) logits of points to their uncertainty (N, 1, P), higher being less certain.
        num_points: P of the result.
        oversample_ratio: k; of ``k * num_points`` random points the most uncertain are taken.
        importance_sample_ratio: beta, the part of the result that is taken so; the rest is random.

    Returns:
        (N, P, 2).
    """
    num_masks, device = len(coarse_logits), coarse_logits.device
    num_uncertain = int(importance_sample_ratio * num_points)
    candidates = torch.rand(num_masks, int(num_points * oversample_ratio), 2, device=device)
    # The uncertainty of interpolated logits. To interpolate uncertainties would not do: between 1 and -1, each of which
    # is certain, there is a 0.
    uncertainty = uncertainty_func(point_sample(coarse_logits, candidates))  # (N, 1, k * P)
    chosen = uncertainty[:, 0].topk(num_uncertain, dim=1).indices
    uncertain = candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2))
    anywhere = torch.rand(num_masks, num_points - num_uncertain, 2, device=device)
    return torch.cat([uncertain, anywhere], dim=1)


def get_uncertain_point_coords_on_grid(uncertainty_map: Tensor, num_points: int) -> tuple[Tensor, Tensor]:
    """The cells of a map that are most uncertain.

    Args:
        uncertainty_map: (N, 1, H, W).
        num_points: P; all cells if there are fewer.

    Returns:
        (N, P) indices of the cells, row by row, and (N, P, 2) coordinates of their centers.
    """
    height, width = uncertainty_map.shape[-2:]
    cells = uncertainty_map.flatten(1).topk(min(num_points, height * width), dim=1).indices
    x = (cells % width + 0.5) / width
    y = (cells.div(width, rounding_mode="floor") + 0.5) / height
    return cells, torch.stack([x, y], dim=-1)


def get_point_coords_wrt_image(boxes_coords: Tensor, point_coords: Tensor) -> Tensor:
    """From coordinates in boxes to pixels of the image.

    Args:
        boxes_coords: (R, 4), XYXY in pixels.
        point_coords: (R, P, 2), each in its box.
    """
    corner, size = boxes_coords[:, None, :2], (boxes_coords[:, 2:] - boxes_coords[:, :2])[:, None]
    return point_coords * size + corner


def point_sample_fine_grained_features(
    features_list: list[Tensor], feature_scales: list[float], boxes: list[Boxes], point_coords: Tensor
) -> tuple[Tensor, Tensor]:
    """The features of points in boxes, those of all feature maps one after the other (sec. 3.2).

    Args:
        features_list: maps (N, C_l, H_l, W_l).
        feature_scales: 1 / stride of each.
        boxes: of each image, R in all.
        point_coords: (R, P, 2), each in its box.

    Returns:
        (R, C, P) features, where C is the sum of C_l, and (R, P, 2) pixels of the image.
    """
    pixels = get_point_coords_wrt_image(torch.cat([x.tensor for x in boxes]), point_coords)
    pixels_of_images = pixels.split([len(x) for x in boxes])
    point_features = [
        torch.cat([_sample_image(*sample, scale) for sample in zip(features, pixels_of_images, strict=True)])
        for features, scale in zip(features_list, feature_scales, strict=True)
    ]
    return torch.cat(point_features, dim=1), pixels


def _sample_image(features: Tensor, pixels: Tensor, scale: float) -> Tensor:
    """(R_i, C, P) from one image's (C, H, W) and (R_i, P, 2) pixels."""
    height, width = features.shape[-2:]
    return point_sample(features[None], _normalize(pixels, height / scale, width / scale)[None])[0].transpose(0, 1)


def sample_point_labels(instances: list[Instances], point_coords: Tensor) -> Tensor:
    """How much each point belongs to the object of its region: true masks, interpolated bilinearly.

    Args:
        instances: of each image, with ``proposal_boxes`` and ``gt_masks``; these may be missing where there is none.
        point_coords: (R, P, 2), each in its box.

    Returns:
        (R, P) in [0, 1].
    """
    labels = [
        _labels_of_image(instances_per_image, points)
        for instances_per_image, points in zip(instances, point_coords.split([len(x) for x in instances]), strict=True)
        if len(instances_per_image) > 0
    ]
    return torch.cat(labels) if labels else point_coords.new_zeros(point_coords.shape[:2])


def _labels_of_image(instances: Instances, point_coords: Tensor) -> Tensor:
    height, width = instances.image_size
    masks = _bitmaps(instances.gt_masks, height, width).to(point_coords)  # (R_i, H, W)
    pixels = get_point_coords_wrt_image(instances.proposal_boxes.tensor, point_coords)
    return point_sample(masks[:, None], _normalize(pixels, height, width))[:, 0]


def _bitmaps(masks: BitMasks | PolygonMasks, height: int, width: int) -> Tensor:
    """(R_i, H, W) bool."""
    if isinstance(masks, BitMasks):
        return masks.tensor
    # The proposals of an object share its polygons, which are drawn once.
    objects = {id(polygons): polygons for polygons in masks.polygons}
    drawn = BitMasks.from_polygon_masks(list(objects.values()), height, width).tensor
    numbers = {key: number for number, key in enumerate(objects)}
    return drawn[[numbers[id(polygons)] for polygons in masks.polygons]]


def sample_point_classes(targets: Tensor, point_coords: Tensor) -> Tensor:
    """The label of the pixel in which each point is.

    Args:
        targets: (N, H, W) int64.
        point_coords: (N, P, 2).

    Returns:
        (N, P) int64.
    """
    height, width = targets.shape[-2:]
    # A point on the right or lower border counts to the last pixel.
    column = (point_coords[..., 0] * width).long().clamp(0, width - 1)
    row = (point_coords[..., 1] * height).long().clamp(0, height - 1)
    return targets.flatten(1).gather(1, row * width + column)


def _normalize(pixels: Tensor, height: float, width: float) -> Tensor:
    """From pixels to [0, 1] x [0, 1], without a tensor of the size, for which an accelerator would wait."""
    x, y = pixels.unbind(dim=-1)
    return torch.stack([x / width, y / height], dim=-1)
