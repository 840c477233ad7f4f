"""The Hungarian method on boxes that overlap enough, all of them equally good."""

from typing import Any

import numpy as np

from detlib.config import CfgNode, configurable
from detlib.structures import Instances, pairwise_iou
from detlib.tracking.base_tracker import TRACKER_HEADS_REGISTRY, options_of
from detlib.tracking.hungarian_tracker import BaseHungarianTracker
from detlib.tracking.utils import LARGE_COST_VALUE, create_prediction_pairs

__all__ = ["VanillaHungarianBBoxIOUTracker"]


@TRACKER_HEADS_REGISTRY.register()
class VanillaHungarianBBoxIOUTracker(BaseHungarianTracker):
    """As many detections as possible continue an object whose box they overlap enough.

    Args:
        video_height: of all frames, in pixels.
        video_width: likewise.
        max_num_instances: no lost object is kept beyond this many objects in a frame.
        max_lost_frame_count: consecutive frames for which an object that is not detected is kept.
        min_box_rel_dim: lost objects that are smaller, relative to the side of the frame, are dropped.
        min_instance_period: lost objects that were detected in no more frames than this are dropped.
        track_iou_threshold: lowest overlap of the boxes of one object in two frames.
    """

    @configurable
    def __init__(
        self,
        *,
        video_height: int,
        video_width: int,
        max_num_instances: int = 200,
        max_lost_frame_count: int = 0,
        min_box_rel_dim: float = 0.02,
        min_instance_period: int = 1,
        track_iou_threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            video_height=video_height,
            video_width=video_width,
            max_num_instances=max_num_instances,
            max_lost_frame_count=max_lost_frame_count,
            min_box_rel_dim=min_box_rel_dim,
            min_instance_period=min_instance_period,
            **kwargs,
        )
        self._track_iou_threshold = track_iou_threshold

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return options_of(cfg)

    def build_cost_matrix(self, instances: Instances, prev_instances: Instances) -> np.ndarray:
        """Return the cost (N, M) of each pair, from :meth:`assign_cost_matrix_values` for those that overlap enough."""
        overlaps = pairwise_iou(instances.pred_boxes, prev_instances.pred_boxes.to(instances.pred_boxes.device))
        overlaps = overlaps.cpu().numpy()
        pairs = create_prediction_pairs(instances, prev_instances, overlaps, self._track_iou_threshold)
        costs = np.full(overlaps.shape, float(LARGE_COST_VALUE))
        return self.assign_cost_matrix_values(costs, pairs)

    def assign_cost_matrix_values(self, cost_matrix: np.ndarray, bbox_pairs: list[dict[str, Any]]) -> np.ndarray:
        """Write the costs of the pairs into the matrix, and return it.

        Args:
            cost_matrix: (N, M), full of ``LARGE_COST_VALUE``.
            bbox_pairs: as :func:`create_prediction_pairs` lists them.
        """
        for pair in bbox_pairs:
            cost_matrix[pair["idx"], pair["prev_idx"]] = -1
        return cost_matrix
