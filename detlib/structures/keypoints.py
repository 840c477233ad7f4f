"""Keypoints of objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Keypoints", "heatmaps_to_keypoints"]


class Keypoints:
    """K keypoints of each of N objects, as a float32 tensor (N, K, 3) of x, y, visibility.

    The visibility is COCO's: 0 not labelled, 1 labelled but hidden, 2 visible.
    """

    def __init__(self, keypoints: Tensor | np.ndarray | list[list[float]]) -> None:
        """Wrap keypoints, without a copy if they are a tensor of float32."""
        if isinstance(keypoints, list):
            keypoints = np.asarray(keypoints)  # Also a list of arrays, and faster than torch for those.
        tensor = torch.as_tensor(keypoints, dtype=torch.float32)
        if tensor.dim() != 3 or tensor.shape[2] != 3:
            raise ValueError(f"keypoints have shape (N, K, 3) with x, y, visibility; got {tuple(tensor.shape)}")
        self.tensor = tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def to(self, *args: Any, **kwargs: Any) -> Keypoints:
        """The keypoints after ``tensor.to`` with these arguments."""
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to_heatmap(self, boxes: Tensor, heatmap_size: int) -> tuple[Tensor, Tensor]:
        """The cell of each keypoint in a square grid over its object's box: targets of a keypoint head.

        Args:
            boxes: (N, 4), XYXY.
            heatmap_size: cells per side, S.

        Returns:
            Index of the cell in the flattened grid, (N, K) int64, and whether the keypoint is labelled and in the box,
            (N, K) bool; the index is 0 where it is not.
        """
        if len(boxes) != len(self):
            raise ValueError(f"each object needs a box: there are {len(self)} objects and {len(boxes)} boxes")
        boxes = boxes[:, None]  # (N, 1, 4)
        points = self.tensor[..., :2]
        cells = ((points - boxes[..., :2]) * (heatmap_size / (boxes[..., 2:] - boxes[..., :2]))).floor().long()
        # The right and the bottom side of the box belong to the last cell.
        cells = torch.where(points == boxes[..., 2:], heatmap_size - 1, cells)
        valid = ((cells >= 0) & (cells < heatmap_size)).all(dim=2) & (self.tensor[..., 2] > 0)
        return (cells[..., 1] * heatmap_size + cells[..., 0]) * valid, valid

    def __getitem__(self, item: int | slice | Tensor) -> Keypoints:
        """Choose objects by a number, a slice, numbers or a mask; the result is Keypoints in each case."""
        chosen = self.tensor[item]
        return Keypoints(chosen.unsqueeze(0) if isinstance(item, int) else chosen)

    def __repr__(self) -> str:
        return f"Keypoints(num_instances={len(self)}, num_keypoints={self.tensor.shape[1]})"

    @staticmethod
    def cat(keypoints_list: list[Keypoints]) -> Keypoints:
        """All objects of a list, which has at least one item."""
        return Keypoints(torch.cat([keypoints.tensor for keypoints in keypoints_list], dim=0))


@torch.no_grad()
def heatmaps_to_keypoints(maps: Tensor, rois: Tensor) -> Tensor:
    """Find the peak of each heatmap after enlarging it to the size of its box.

    Args:
        maps: (N, K, S, S), logits of a keypoint head.
        rois: (N, 4), XYXY.

    Returns:
        (N, K, 4): x and y in the image, logit of the peak, and its score: the probability that a softmax over the
        small heatmap would give to that logit, which makes objects of different sizes comparable.
    """
    maps, rois = maps.float(), rois.float()
    corners = rois[:, :2]
    sizes = (rois[:, 2:] - corners).clamp(min=1)
    pixels = sizes.ceil()
    peaks = [_peaks(heatmaps, *size) for heatmaps, size in zip(maps, pixels.long().tolist(), strict=True)]
    if not peaks:
        return maps.new_zeros(0, maps.shape[1], 4)
    positions = torch.stack([xy for xy, _ in peaks])  # (N, K, 2)
    logits = torch.stack([logit for _, logit in peaks])  # (N, K)
    scores = (logits - maps.flatten(2).logsumexp(dim=2)).exp()
    xy = corners[:, None] + (positions + 0.5) * (sizes / pixels)[:, None]
    return torch.cat([xy, logits[..., None], scores[..., None]], dim=2)


def _peaks(heatmaps: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Pixel (K, 2) as x, y and value (K) of the largest value of each heatmap (K, S, S) after enlarging it."""
    enlarged = F.interpolate(heatmaps[None], size=(height, width), mode="bicubic", align_corners=False)[0]
    logits, index = enlarged.flatten(1).max(dim=1)
    return torch.stack([index % width, index // width], dim=1), logits
