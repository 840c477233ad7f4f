"""Candidates for being the same object in two frames."""

from typing import Any

import numpy as np

from detlib.structures import Instances

__all__ = ["LARGE_COST_VALUE", "create_prediction_pairs"]

LARGE_COST_VALUE = 100000
"""Cost of a pair that cannot be the same object."""


def create_prediction_pairs(
    instances: Instances, prev_instances: Instances, iou_all: np.ndarray, threshold: float = 0.5
) -> list[dict[str, Any]]:
    """List the pairs of a detection and an object of the frame before that overlap enough.

    Args:
        instances: N detections.
        prev_instances: M objects, with "ID" and "ID_period".
        iou_all: (N, M) overlap of their boxes.
        threshold: lowest overlap.

    Returns:
        dicts with "idx" of the detection, "prev_idx", "prev_id" and "prev_period" of the object, and their "IoU".
    """
    return [
        {
            "idx": i,
            "prev_idx": j,
            "prev_id": prev_instances.ID[j],
            "IoU": iou_all[i, j],
            "prev_period": prev_instances.ID_period[j],
        }
        for i, j in np.argwhere(np.asarray(iou_all) >= threshold).tolist()
    ]
