"""The Hungarian method on boxes that overlap enough, those with more overlap preferred."""

from typing import Any

import numpy as np

from detlib.tracking.base_tracker import TRACKER_HEADS_REGISTRY
from detlib.tracking.vanilla_hungarian_bbox_iou_tracker import VanillaHungarianBBoxIOUTracker

__all__ = ["IOUWeightedHungarianBBoxIOUTracker"]


@TRACKER_HEADS_REGISTRY.register()
class IOUWeightedHungarianBBoxIOUTracker(VanillaHungarianBBoxIOUTracker):
    """The sum of the overlaps of detections and the objects that they continue is as large as possible."""

    def assign_cost_matrix_values(self, cost_matrix: np.ndarray, bbox_pairs: list[dict[str, Any]]) -> np.ndarray:
        """Write the negated overlaps of the pairs into the matrix, and return it.

        Args:
            cost_matrix: (N, M), full of ``LARGE_COST_VALUE``.
            bbox_pairs: as :func:`create_prediction_pairs` lists them.
        """
        for pair in bbox_pairs:
            cost_matrix[pair["idx"], pair["prev_idx"]] = -pair["IoU"]
        return cost_matrix
