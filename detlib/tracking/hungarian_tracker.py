"""Tracking by the assignment of detections to objects whose total cost is lowest (the Hungarian method)."""

from typing import Any

import numpy as np

from detlib.config import CfgNode, configurable
from detlib.structures import Instances
from detlib.tracking.base_tracker import BaseTracker
from detlib.tracking.identities import Identities
from detlib.tracking.utils import LARGE_COST_VALUE
from detlib.utils.errors import DetlibError

__all__ = ["BaseHungarianTracker"]


class BaseHungarianTracker(BaseTracker):
    """Subclasses define :meth:`build_cost_matrix`.

    Args:
        video_height: of all frames, in pixels.
        video_width: likewise.
        max_num_instances: no lost object is kept beyond this many objects in a frame.
        max_lost_frame_count: consecutive frames for which an object that is not detected is kept.
        min_box_rel_dim: lost objects that are smaller, relative to the side of the frame, are dropped.
        min_instance_period: lost objects that were detected in no more frames than this are dropped.
    """

    @configurable
    def __init__(
        self,
        video_height: int,
        video_width: int,
        max_num_instances: int = 200,
        max_lost_frame_count: int = 0,
        min_box_rel_dim: float = 0.02,
        min_instance_period: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._identities = Identities(
            video_height, video_width, max_num_instances, max_lost_frame_count, min_box_rel_dim, min_instance_period
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        raise NotImplementedError(f"{cls.__name__} cannot be built from a config; define its from_config")

    def build_cost_matrix(self, instances: Instances, prev_instances: Instances) -> np.ndarray:
        """Return the cost (N, M) of taking a detection and an object of the frame before for the same.

        Pairs of ``LARGE_COST_VALUE`` or more are never taken for the same.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define build_cost_matrix")

    def update(self, instances: Instances) -> Instances:
        """Return the detections of the next frame with "ID", "ID_period" and "lost_frame_count", then lost objects.

        Args:
            instances: detections of the next frame, with "pred_boxes"; they are not changed.

        Raises:
            DetlibError: scipy is missing.
        """
        matches = {}
        if self._prev_instances is not None:
            matches = _assign(self.build_cost_matrix(instances, self._prev_instances))
        self._prev_instances = self._identities.assign(instances, self._prev_instances, matches)
        return self._prev_instances


def _assign(costs: np.ndarray) -> dict[int, int]:
    """Row -> column of the assignment with the lowest total cost, without pairs that are ruled out."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise DetlibError("Hungarian trackers need scipy: pip install scipy, or use BBoxIOUTracker") from error
    rows, columns = linear_sum_assignment(costs)
    return {i: j for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if costs[i, j] < LARGE_COST_VALUE}
