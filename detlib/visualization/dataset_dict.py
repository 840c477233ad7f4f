"""What a dataset dict says about its image, in the form that the Visualizer draws."""

from typing import Any

import numpy as np

from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

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
    return _read(dataset_dict["sem_seg_file_name"])


def panoptic_map(dataset_dict: dict[str, Any]) -> np.ndarray | None:
    """(H, W) segment ids, given in the dict or in the PNG that it names."""
    if dataset_dict.get("pan_seg") is not None:
        return np.asarray(dataset_dict["pan_seg"])
    if "pan_seg_file_name" not in dataset_dict:
        return None
    colors = _read(dataset_dict["pan_seg_file_name"])
    if colors.ndim != 3:
        raise DatasetError(
            f"panoptic file {dataset_dict['pan_seg_file_name']} has the shape {colors.shape}, expected an RGB PNG "
            "in which a segment's id is R + 256 G + 65536 B"
        )
    return colors[..., :3].astype(np.int64) @ np.array([1, 256, 256**2])


def _read(file_name: str) -> np.ndarray:
    from PIL import Image

    if not PathManager.isfile(file_name):
        raise MissingFileError(f"label file {file_name} does not exist; is the folder of the dataset complete?")
    with PathManager.open(file_name, "rb") as file:
        return np.asarray(Image.open(file))
