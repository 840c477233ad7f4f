"""Label maps: files with a number for each pixel, which is a class or a segment."""

import os
from typing import Any

import numpy as np

from detlib.data.image_reading import read_image
from detlib.utils.errors import DatasetError

__all__ = ["read_label_map", "read_segment_ids", "semantic_labels_of"]

IGNORED = 255  # Label of pixels in no segment.


def read_label_map(file_name: str | os.PathLike[str]) -> np.ndarray:
    """Read the classes of an image's pixels, as they are stored: the index of a palette, not its color.

    Returns:
        (H, W), uint8 or int32.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged, or has colors.
    """
    labels = read_image(file_name)
    if labels.ndim == 3 and (labels[..., :3] == labels[..., :1]).all():  # Gray, stored as RGB.
        labels = labels[..., 0]
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise DatasetError(
            f"label map {os.fspath(file_name)} has the shape {labels.shape} and type {labels.dtype}; a gray or palette "
            "image is expected, whose pixel values are classes. Colors must be turned into class numbers first"
        )
    return labels.astype(np.uint8 if labels.dtype in (np.uint8, bool) else np.int32)


def read_segment_ids(file_name: str | os.PathLike[str]) -> np.ndarray:
    """Read a PNG of COCO's panoptic format: (H, W) int64 segment ids, R + 256 G + 65536 B."""
    return read_image(file_name, "RGB") @ np.array([1, 256, 256**2])


def semantic_labels_of(dataset_dict: dict[str, Any]) -> np.ndarray | None:
    """The classes of the pixels of a sample (H, W), None if it has none.

    They come from the file ``sem_seg_file_name``, or from the panoptic PNG if every segment of ``segments_info`` says
    its ``sem_seg_label``; pixels in no segment are then 255.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged, has colors, or ids that ``segments_info`` does not know.
    """
    if "sem_seg_file_name" in dataset_dict:
        return read_label_map(dataset_dict["sem_seg_file_name"])
    segments = dataset_dict.get("segments_info")
    if "pan_seg_file_name" not in dataset_dict or not all("sem_seg_label" in s for s in segments or [{}]):
        return None
    ids, places = np.unique(read_segment_ids(dataset_dict["pan_seg_file_name"]), return_inverse=True)
    label_of_id = {0: IGNORED, **{segment["id"]: segment["sem_seg_label"] for segment in segments}}
    unknown = [i for i in ids.tolist() if i not in label_of_id]
    if unknown:
        raise DatasetError(
            f"{dataset_dict['pan_seg_file_name']} has the segment {unknown[0]}, which its JSON file does not describe; "
            "are both of the same version?"
        )
    labels = np.array([label_of_id[i] for i in ids.tolist()])
    return labels.astype(np.uint8 if labels.max() < 256 else np.int32)[places.reshape(-1)].reshape(places.shape)
