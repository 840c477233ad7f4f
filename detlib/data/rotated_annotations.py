"""Annotations of rotated boxes, from a sample of a dataset to training targets."""

from typing import Any

import numpy as np
import torch

from detlib.config import CfgNode
from detlib.data import transforms as T
from detlib.structures import BoxMode, Instances, RotatedBoxes, pairwise_iou_rotated
from detlib.utils.errors import DatasetError

__all__ = [
    "annotations_to_instances_rotated",
    "filter_invisible_rotated",
    "transform_instance_annotations_rotated",
    "uses_rotated_boxes",
]


def uses_rotated_boxes(cfg: CfgNode) -> bool:
    """Whether the model of a config learns and predicts rotated boxes, which it does from rotated anchors."""
    return cfg.MODEL.ANCHOR_GENERATOR.NAME == "RotatedAnchorGenerator"


def transform_instance_annotations_rotated(annotation: dict[str, Any], transforms: T.Transform) -> dict[str, Any]:
    """Apply a transform to the box of one object, in place.

    The box becomes a rotated one in pixels, at an angle of 0 if it is of another mode. It is not clipped.

    Args:
        annotation: "bbox" and "bbox_mode".

    Returns:
        The same dict.
    """
    box_xywha = np.array([_to_xywha(annotation)], dtype=float)
    annotation["bbox"] = transforms.apply_rotated_box(box_xywha)[0]
    annotation["bbox_mode"] = BoxMode.XYWHA_ABS
    return annotation


def annotations_to_instances_rotated(annos: list[dict[str, Any]], image_size: tuple[int, int]) -> Instances:
    """Gather the transformed annotations of one image into training targets with rotated boxes.

    Args:
        annos: of each object the "category_id", and the "bbox" as x and y of the center, width, height and angle; with
            a "bbox_mode", it may be of another form.
        image_size: (height, width), to which boxes that are nearly upright are clipped.

    Returns:
        Instances with gt_boxes, which are RotatedBoxes, and gt_classes.
    """
    boxes = RotatedBoxes(torch.tensor([_to_xywha(a) for a in annos], dtype=torch.float32).reshape(-1, 5))
    boxes.clip(image_size)
    target = Instances(image_size)
    target.gt_boxes = boxes
    target.gt_classes = torch.tensor([int(a["category_id"]) for a in annos], dtype=torch.int64)
    return target


def filter_invisible_rotated(instances: Instances) -> Instances:
    """Drop objects whose rotated boxes are empty, or which a crop left outside of the image."""
    height, width = instances.image_size
    image = RotatedBoxes([[width / 2, height / 2, width, height, 0.0]])
    return instances[pairwise_iou_rotated(instances.gt_boxes, image)[:, 0] > 0]


def _to_xywha(annotation: dict[str, Any]) -> list[float]:
    """Five numbers."""
    if "bbox" not in annotation:
        raise DatasetError(f"an annotation lacks bbox; it has {', '.join(sorted(annotation))}")
    box = [float(value) for value in annotation["bbox"]]
    mode = annotation.get("bbox_mode", BoxMode.XYWHA_ABS)
    if mode == BoxMode.XYXY_ABS:
        box, mode = BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS), BoxMode.XYWH_ABS
    if len(box) != (5 if mode == BoxMode.XYWHA_ABS else 4):
        raise DatasetError(f"a box in {BoxMode(mode).name} is {box}; rotated boxes are five numbers, in XYWHA_ABS")
    return BoxMode.convert(box, mode, BoxMode.XYWHA_ABS)
