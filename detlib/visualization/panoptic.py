"""A panoptic map taken apart into masks of stuff and of things."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["_PanopticPrediction"]


class _PanopticPrediction:
    """Segments of a panoptic map.

    Args:
        panoptic_seg: (H, W) segment ids.
        segments_info: dicts with "id", "category_id", "isthing" and perhaps "score". With None, ids are taken to be
            category_id * label_divisor + number, as Cityscapes and Panoptic-DeepLab have them.
        metadata: its ``label_divisor`` and ``thing_dataset_id_to_contiguous_id`` are used when segments_info is None.
    """

    def __init__(
        self, panoptic_seg: Any, segments_info: list[dict[str, Any]] | None, metadata: Any | None = None
    ) -> None:
        if isinstance(panoptic_seg, torch.Tensor):
            panoptic_seg = panoptic_seg.detach().cpu().numpy()
        self._map = np.asarray(panoptic_seg)
        ids, areas = np.unique(self._map, return_counts=True)
        self._areas = dict(zip(ids.tolist(), areas.tolist(), strict=True))
        if segments_info is None:
            segments_info = self._infer_segments(metadata)
        self._segments = {info["id"]: info for info in segments_info if info["id"] in self._areas}

    def non_empty_mask(self) -> np.ndarray:
        """(H, W) bool: the pixels that belong to a segment."""
        return np.isin(self._map, list(self._segments))

    def semantic_masks(self) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Mask (H, W) and info of each stuff segment, the largest first."""
        return self._masks(isthing=False)

    def instance_masks(self) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Mask (H, W) and info of each thing, the largest first."""
        return self._masks(isthing=True)

    def _masks(self, isthing: bool) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        chosen = [info for info in self._segments.values() if bool(info.get("isthing", False)) == isthing]
        for info in sorted(chosen, key=lambda info: -self._areas[info["id"]]):
            yield self._map == info["id"], info

    def _infer_segments(self, metadata: Any | None) -> list[dict[str, Any]]:
        divisor = None if metadata is None else metadata.get("label_divisor")
        if divisor is None:
            raise ValueError(
                "draw_panoptic_seg got segments_info=None, so metadata.label_divisor must say how ids are made; "
                "pass segments_info or set MetadataCatalog.get(dataset).label_divisor"
            )
        things = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
        return [
            {"id": i, "category_id": i // divisor, "isthing": i // divisor in things}
            for i in self._areas
            if i >= 0  # Negative ids mean no segment.
        ]
