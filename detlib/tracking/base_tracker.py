"""What trackers have in common, and how a config chooses one."""

from typing import Any

from detlib.config import CfgNode, configurable
from detlib.structures import Instances
from detlib.utils.registry import Registry

__all__ = ["TRACKER_HEADS_REGISTRY", "BaseTracker", "build_tracker_head"]

TRACKER_HEADS_REGISTRY = Registry("TRACKER_HEADS")
"""Trackers by name: classes that are built from a config."""


class BaseTracker:
    """Gives detections of consecutive frames identities. One object follows one video.

    Args:
        **kwargs: options of subclasses.
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        self._prev_instances: Instances | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        raise NotImplementedError(f"{cls.__name__} cannot be built from a config; define its from_config")

    def update(self, predictions: Instances) -> Instances:
        """Return the detections of the next frame with the identities that their objects had before.

        Args:
            predictions: of the next frame, with "pred_boxes".
        """
        raise NotImplementedError(f"{type(self).__name__} does not define update")


def build_tracker_head(cfg: CfgNode) -> BaseTracker:
    """Build the tracker named ``cfg.TRACKER_HEADS.TRACKER_NAME``."""
    return TRACKER_HEADS_REGISTRY.get(cfg.TRACKER_HEADS.TRACKER_NAME)(cfg)


def options_of(cfg: CfgNode) -> dict[str, Any]:
    """The constructor's arguments, those of all trackers of this package."""
    options = cfg.TRACKER_HEADS
    return {
        "video_height": options.VIDEO_HEIGHT,
        "video_width": options.VIDEO_WIDTH,
        "max_num_instances": options.MAX_NUM_INSTANCES,
        "max_lost_frame_count": options.MAX_LOST_FRAME_COUNT,
        "min_box_rel_dim": options.MIN_BOX_REL_DIM,
        "min_instance_period": options.MIN_INSTANCE_PERIOD,
        "track_iou_threshold": options.TRACK_IOU_THRESHOLD,
    }
