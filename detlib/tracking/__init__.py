"""Follow objects from frame to frame: detections of each frame get identities, without a further model."""

from detlib.tracking.base_tracker import TRACKER_HEADS_REGISTRY, BaseTracker, build_tracker_head
from detlib.tracking.bbox_iou_tracker import BBoxIOUTracker
from detlib.tracking.hungarian_tracker import BaseHungarianTracker
from detlib.tracking.iou_weighted_hungarian_bbox_iou_tracker import IOUWeightedHungarianBBoxIOUTracker
from detlib.tracking.utils import create_prediction_pairs
from detlib.tracking.vanilla_hungarian_bbox_iou_tracker import VanillaHungarianBBoxIOUTracker

__all__ = [
    "TRACKER_HEADS_REGISTRY",
    "BBoxIOUTracker",
    "BaseHungarianTracker",
    "BaseTracker",
    "IOUWeightedHungarianBBoxIOUTracker",
    "VanillaHungarianBBoxIOUTracker",
    "build_tracker_head",
    "create_prediction_pairs",
]
