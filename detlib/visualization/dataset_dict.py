"""What a dataset dict says about its image, in the form that the Visualizer draws."""

from typing import Any

import numpy as np

from detlib.data.label_maps import read_label_map, read_segment_ids
from detlib.structures import BoxMode

__all__ = ["annotation_boxes", "annotation_field", "panoptic_map", "semantic_map"]


def annotation_boxes(annotations: list[dict[str, Any]]) -> list[list[float]] | None:
    """The boxes in XYXY, or as they are if they are rotated ones; None unless each annotation has one."""
    if not annotations or not all("bbox" in annotation for annotation in annotations):
        return None
    return [_to_xyxy([float(value) for value in a["bbox"]], a["bbox_mode"]) for a in annotations]


def _to_xyxy(box: list[float], mode: BoxMode) -> list[float]:
    return box if len(box) == 5 else BoxMode.convert(box, BoxMode(mode), BoxMode.XYXY_ABS)


def annotation_field(annotations: list[dict[str, Any]], name: str) -> list[Any] | None:
    """One field of all annotations, None where it is missing; None when no annotation has it."""
    values = [annotation.get(name) for annotation in annotations]
    return None if all(value is None for value in values) else values


def semantic_map(dataset_dict: dict[str, Any]) -> np.ndarray | None:
    """(H, W) class ids, given in the dict or in the file that it names."""
    if dataset_dict.get("sem_seg") is not None:
        return np.asarray(dataset_dict["sem_seg"])
    if "sem_seg_file_name" not in dataset_dict:
        return None
    return read_label_map(dataset_dict["sem_seg_file_name"])


def panoptic_map(dataset_dict: dict[str, Any]) -> np.ndarray | None:
    """(H, W) segment ids, given in the dict or in the PNG that it names."""
    if dataset_dict.get("pan_seg") is not None:
        return np.asarray(dataset_dict["pan_seg"])
    if "pan_seg_file_name" not in dataset_dict:
        return None
    return read_segment_ids(dataset_dict["pan_seg_file_name"])
