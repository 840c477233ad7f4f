"""COCO's JSON format: a file is read and checked, and its annotations become instances of samples."""

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from detlib.data.datasets.coco_values import (
    are_numbers,
    check_entries,
    check_one_kind_of_ids,
    is_box,
    polygon_problem,
    rle_problem,
    short,
)
from detlib.data.datasets.json_files import read_json
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError

__all__ = ["IMAGE_KEYS", "annotation_error", "check_boxes", "check_unique", "parse_instance", "read_coco_file", "some"]

logger = logging.getLogger(__name__)

Entry = dict[str, Any]

IMAGE_KEYS = frozenset({"id", "file_name", "height", "width"})
ANNOTATION_KEYS = frozenset({"id", "image_id", "category_id", "bbox"})
CATEGORY_KEYS = frozenset({"id", "name"})

# These two files, of 2014, repeat a few annotation ids; AP does not change by it, and the field reports on them as is.
FILES_WITH_KNOWN_DUPLICATES = ("instances_minival2014.json", "instances_valminusminival2014.json")


def read_coco_file(json_file: str, image_keys: frozenset[str] = IMAGE_KEYS) -> dict[str, list[Entry]]:
    """Read and check the three lists; a file without annotations (a test set) gets an empty list."""
    content = read_json(json_file)
    if not isinstance(content, dict):
        raise DatasetError(f"{json_file}: expected an object with 'images', 'annotations' and 'categories'")
    if "annotations" not in content:
        logger.warning(f"{json_file} has no 'annotations': its images count as unlabelled")
    lists = {"annotations": [], **content}
    for key, required in (("images", image_keys), ("annotations", ANNOTATION_KEYS), ("categories", CATEGORY_KEYS)):
        if not isinstance(lists.get(key), list):
            found = f"is {type(content[key]).__name__}" if key in content else "is missing"
            raise DatasetError(f"{json_file}: {key!r} {found}; COCO's format needs a list of objects there")
        check_entries(lists[key], required, key, json_file)
    return lists


def check_unique(entries: list[Entry], kind: str, json_file: str) -> None:
    check_one_kind_of_ids(entries, kind, json_file)
    if len({entry["id"] for entry in entries}) == len(entries):
        return
    seen: set[Any] = set()
    repeated = [entry["id"] for entry in entries if entry["id"] in seen or seen.add(entry["id"])]
    message = f"{json_file}: {len(repeated)} {kind} ids come twice: {some(repeated)}; every {kind} needs its own id"
    if os.path.basename(json_file) not in FILES_WITH_KNOWN_DUPLICATES:
        raise DatasetError(message)
    logger.warning(message)


def check_boxes(annotations: list[Entry], json_file: str) -> None:
    bad = [annotation for annotation in annotations if not is_box(annotation["bbox"])]
    if bad:
        found = "; ".join(f"annotation {a['id']} of image {a['image_id']!r}: {short(a['bbox'])}" for a in bad[:5])
        raise DatasetError(
            f"{json_file}: {len(bad)} boxes are not four finite numbers [x, y, width, height] of pixels: {found}. "
            "Correct or delete them. (Rotated boxes are five: [center x, center y, width, height, degrees].)"
        )
    flat = [a["id"] for a in annotations if a["bbox"][2] <= 0 or a["bbox"][3] <= 0]
    if flat:
        logger.warning(
            f"{json_file}: {len(flat)} boxes have no area (width or height <= 0) and cannot be learned: annotation "
            f"ids {some(flat)}. Boxes are [x, y, width, height], not two corners."
        )


def parse_instance(annotation: Entry, category_id: int, extra_keys: Iterable[str], json_file: str) -> Entry | None:
    """Build an instance of a sample; None if it should have a mask and its polygons enclose nothing."""
    if annotation.get("ignore"):
        raise annotation_error(
            json_file, annotation, "it is marked 'ignore'", "mark such regions with 'iscrowd': 1 instead"
        )
    instance = {
        "iscrowd": annotation.get("iscrowd", 0),
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWHA_ABS if len(annotation["bbox"]) == 5 else BoxMode.XYWH_ABS,
        "category_id": category_id,
    }
    instance.update((key, annotation[key]) for key in extra_keys if key in annotation)
    if annotation.get("segmentation"):
        instance["segmentation"] = _segmentation(annotation, json_file)
        if not instance["segmentation"]:
            return None
    if annotation.get("keypoints"):
        instance["keypoints"] = _keypoints(annotation, json_file)
    return instance


def _segmentation(annotation: Entry, json_file: str) -> list[list[float]] | Entry:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return _compressed_rle(annotation, json_file)
    if not isinstance(segmentation, list):
        problem = f"its 'segmentation' is {short(segmentation)}"
    else:
        problem = next(filter(None, map(polygon_problem, segmentation)), "")
        problem = problem and f"a polygon of its 'segmentation' {problem}"
    if problem:
        raise annotation_error(
            json_file, annotation, problem, "expected an RLE object or polygons [[x0, y0, x1, y1, ...], ...]"
        )
    return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _compressed_rle(annotation: Entry, json_file: str) -> Entry:
    rle = annotation["segmentation"]
    if not {"counts", "size"} <= rle.keys():
        problem = f"its 'segmentation' has only the keys {short(sorted(rle))}"
        raise annotation_error(json_file, annotation, problem, "an RLE needs 'counts' and 'size' [height, width]")
    problem = rle_problem(rle)
    if problem:
        remedy = "counts are lengths of runs, column by column, background first"
        raise annotation_error(json_file, annotation, f"its RLE {problem}", remedy)
    if not isinstance(rle["counts"], list):
        return rle
    from pycocotools import mask as coco_mask

    return coco_mask.frPyObjects(rle, *rle["size"])


def _keypoints(annotation: Entry, json_file: str) -> list[float]:
    """Return x, y, visibility triples, from pixel indices to points of the plane."""
    keypoints = annotation["keypoints"]
    if not isinstance(keypoints, list) or len(keypoints) % 3 or not are_numbers(keypoints):
        problem = f"its 'keypoints' are {short(keypoints)}"
        raise annotation_error(
            json_file, annotation, problem, "expected a flat list [x, y, visibility, x, y, visibility, ...]"
        )
    points = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
    points[:, :2] += 0.5
    return points.reshape(-1).tolist()


def annotation_error(json_file: str, annotation: Entry, problem: str, remedy: str) -> DatasetError:
    where = f"annotation {short(annotation['id'])} of image {short(annotation['image_id'])}"
    return DatasetError(f"{json_file}: {where}: {problem}; {remedy}")


def some(items: Sequence[Any]) -> str:
    return ", ".join(map(short, items[:5])) + (", ..." if len(items) > 5 else "")
