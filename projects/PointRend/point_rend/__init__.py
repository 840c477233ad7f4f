"""PointRend (https://arxiv.org/abs/1912.08193): masks refined at the points where they are in doubt."""

from .config import add_pointrend_config
from .mask_head import PointRendMaskHead
from .point_head import POINT_HEAD_REGISTRY, StandardPointHead, build_point_head
from .roi_heads import PointRendROIHeads
from .semantic_seg import PointRendSemSegHead

__all__ = [
    "POINT_HEAD_REGISTRY",
    "PointRendMaskHead",
    "PointRendROIHeads",
    "PointRendSemSegHead",
    "StandardPointHead",
    "add_config",
    "add_pointrend_config",
    "build_point_head",
]

add_config = add_pointrend_config  # What CUSTOM_IMPORTS calls.
