"""Boxes, masks, keypoints, and the containers that carry them through a model."""

from detlib.structures.boxes import (
    Boxes,
    BoxMode,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detlib.structures.image_list import ImageList
from detlib.structures.instances import Instances
from detlib.structures.keypoints import Keypoints, heatmaps_to_keypoints
from detlib.structures.masks import BitMasks, PolygonMasks, ROIMasks, polygons_to_bitmask
from detlib.structures.rotated_boxes import RotatedBoxes
from detlib.structures.rotated_boxes import pairwise_iou as pairwise_iou_rotated

__all__ = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "ImageList",
    "Instances",
    "Keypoints",
    "PolygonMasks",
    "ROIMasks",
    "RotatedBoxes",
    "heatmaps_to_keypoints",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_iou_rotated",
    "pairwise_point_box_distance",
    "polygons_to_bitmask",
]
