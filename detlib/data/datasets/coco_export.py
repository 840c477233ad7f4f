"""Any registered dataset, written as a COCO JSON file, so that COCO's evaluation can read it."""

import json
import logging
import os
from typing import Any

from iopath.common.file_io import file_lock

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.structures import BoxMode, PolygonMasks
from detlib.utils.errors import DatasetError

__all__ = ["convert_to_coco_dict", "convert_to_coco_json"]

logger = logging.getLogger(__name__)


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered dataset of instances as a COCO JSON file.

    The file appears complete or not at all, and processes that ask for the same one wait for each other.

    Args:
        dataset_name: its metadata must have ``thing_classes``.
        output_file: path of the JSON file; folders are made.
        allow_cached: keep the file if it exists.
    """
    output_file = os.path.abspath(output_file)
    with file_lock(output_file):
        if allow_cached and os.path.exists(output_file):
            logger.warning(f"Using {output_file} as it is; delete it if the dataset {dataset_name!r} has changed")
            return
        content = convert_to_coco_dict(dataset_name)
        temporary = f"{output_file}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, default=_plain)
        os.replace(temporary, output_file)
    logger.info(f"Wrote {len(content['annotations'])} annotations of dataset {dataset_name!r} to {output_file}")


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """Return what :func:`convert_to_coco_json` writes."""
    samples = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is None:
        raise DatasetError(
            f"dataset {dataset_name!r} has no class names; set MetadataCatalog.get({dataset_name!r}).thing_classes"
        )
    contiguous_ids = metadata.get("thing_dataset_id_to_contiguous_id") or {
        index: index for index in range(len(metadata.thing_classes))
    }
    dataset_ids = {contiguous: original for original, contiguous in contiguous_ids.items()}
    images, annotations = [], []
    for index, sample in enumerate(samples):
        image = {
            "id": sample.get("image_id", index),
            "width": int(sample["width"]),
            "height": int(sample["height"]),
            "file_name": str(sample["file_name"]),
        }
        images.append(image)
        for instance in sample.get("annotations", []):
            annotation = _annotation(instance, dataset_ids)
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **annotation})
    return {
        "info": {"description": f"dataset {dataset_name!r}, converted by detlib"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": dataset_ids[i], "name": name} for i, name in enumerate(metadata.thing_classes)],
    }


def _plain(value: Any) -> Any:
    """Turn a number of numpy, which json does not know, into one of Python."""
    if not hasattr(value, "item"):
        raise DatasetError(f"cannot write {value!r} to JSON; samples to be converted hold numbers, strings and lists")
    return value.item()


def _annotation(instance: dict[str, Any], dataset_ids: dict[int, int]) -> dict[str, Any]:
    mode = instance["bbox_mode"]  # Rotated boxes stay as they are, five numbers.
    written = mode if mode == BoxMode.XYWHA_ABS else BoxMode.XYWH_ABS
    box = BoxMode.convert([float(x) for x in instance["bbox"]], mode, written)
    annotation = {
        "bbox": [round(x, 3) for x in box],
        "area": float(box[2] * box[3]),
        "iscrowd": int(instance.get("iscrowd", 0)),
        "category_id": dataset_ids[instance["category_id"]],
    }
    segmentation = instance.get("segmentation")
    if segmentation:
        annotation["area"], annotation["segmentation"] = _mask(segmentation)
    if instance.get("keypoints"):
        keypoints = [float(x) for x in instance["keypoints"]]
        annotation["num_keypoints"] = sum(visibility > 0 for visibility in keypoints[2::3])
        annotation["keypoints"] = [x if i % 3 == 2 else x - 0.5 for i, x in enumerate(keypoints)]
    return annotation


def _mask(segmentation: list[Any] | dict[str, Any]) -> tuple[float, list[list[float]] | dict[str, Any]]:
    """Return area and a form that JSON can hold."""
    if isinstance(segmentation, list):
        polygons = [[float(x) for x in polygon] for polygon in segmentation]
        return float(PolygonMasks([polygons]).area()[0]), polygons
    from pycocotools import mask as coco_mask

    counts = segmentation["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    rle = {"size": [int(x) for x in segmentation["size"]], "counts": counts}
    return float(coco_mask.area(rle)), rle
