"""Tracking by overlap of boxes, the best pair first."""

from typing import Any

from detlib.config import CfgNode, configurable
from detlib.structures import Instances, pairwise_iou
from detlib.tracking.base_tracker import TRACKER_HEADS_REGISTRY, BaseTracker, options_of
from detlib.tracking.identities import Identities
from detlib.tracking.utils import create_prediction_pairs

__all__ = ["BBoxIOUTracker"]


@TRACKER_HEADS_REGISTRY.register()
class BBoxIOUTracker(BaseTracker):
    """A detection continues the object of the frame before that it overlaps most, pairs taken in order of overlap.

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
        super().__init__(**kwargs)
        self._identities = Identities(
            video_height, video_width, max_num_instances, max_lost_frame_count, min_box_rel_dim, min_instance_period
        )
        self._track_iou_threshold = track_iou_threshold

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return options_of(cfg)

    def update(self, instances: Instances) -> Instances:
        """Return the detections of the next frame with "ID", "ID_period" and "lost_frame_count", then lost objects.

        Args:
            instances: detections of the next frame, with "pred_boxes"; they are not changed.
        """
        matches = {} if self._prev_instances is None else self._match(instances, self._prev_instances)
        self._prev_instances = self._identities.assign(instances, self._prev_instances, matches)
        return self._prev_instances

    def _match(self, instances: Instances, previous: Instances) -> dict[int, int]:
        overlaps = pairwise_iou(instances.pred_boxes, previous.pred_boxes.to(instances.pred_boxes.device))
        pairs = create_prediction_pairs(instances, previous, overlaps.cpu().numpy(), self._track_iou_threshold)
        matches: dict[int, int] = {}
        for pair in sorted(pairs, key=lambda pair: -pair["IoU"]):
            if pair["idx"] not in matches and pair["prev_idx"] not in matches.values():
                matches[pair["idx"]] = pair["prev_idx"]
        return matches
