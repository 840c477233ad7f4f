"""Datasets in COCO's JSON format: read, register, write; and pairs of images and semantic label maps.

A box in the files is XYWH in pixels, or XYWHA, a rotated box, if it is five numbers. A keypoint there is the index of
a pixel, in the loaded samples a point of the plane in which pixel (0, 0) covers [0, 1) x [0, 1): reading adds 0.5,
writing takes it away.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.coco_export import convert_to_coco_json
from detlib.data.datasets.coco_keypoints import keypoint_metadata_of
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["convert_to_coco_json", "load_coco_json", "load_sem_seg", "register_coco_instances"]

logger = logging.getLogger(__name__)

Entry = dict[str, Any]

IMAGE_KEYS = frozenset({"id", "file_name", "height", "width"})
ANNOTATION_KEYS = frozenset({"id", "image_id", "category_id", "bbox"})
CATEGORY_KEYS = frozenset({"id", "name"})

# These two files, of 2014, repeat a few annotation ids; AP does not change by it, and the field reports on them as is.
FILES_WITH_KNOWN_DUPLICATES = ("instances_minival2014.json", "instances_valminusminival2014.json")


def register_coco_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a dataset in COCO's format for detection, instance segmentation or keypoints.

    No file is read before the dataset is first asked for.

    Args:
        name: name for the config, for example ``cells_train``.
        metadata: further metadata, may be ``{}``. ``keypoint_names``, ``keypoint_flip_map`` and
            ``keypoint_connection_rules`` are by default those of the first category that has ``keypoints``.
        json_file: annotations.
        image_root: folder to which the file names in ``json_file`` are relative.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[Entry]:
    """Read a COCO JSON file of boxes, masks and keypoints.

    Args:
        json_file: annotations.
        image_root: folder to which the file names in ``json_file`` are relative.
        dataset_name: if given, the metadata of that dataset gets ``thing_classes`` and
            ``thing_dataset_id_to_contiguous_id``, and category ids are mapped to 0 ... K - 1 in the order of the ids
            in the file. Without it, ids stay as they are.
        extra_annotation_keys: keys of an annotation to carry over to the samples as they are, where present.

    Returns:
        One dict per image in the order of image ids: ``file_name``, ``height``, ``width``, ``image_id`` and
        ``annotations``, each with ``bbox``, ``bbox_mode``, ``iscrowd``, ``category_id`` and, where the file has them,
        ``segmentation`` (polygons, or a compressed RLE) and ``keypoints``.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged or an entry of it is; the message names the entry.
    """
    content = _read(json_file)
    category_ids = _register_categories(content["categories"], dataset_name, json_file)
    annotations = content["annotations"]
    _check_unique(annotations, "annotation", json_file)
    _check_boxes(annotations, json_file)
    samples = _samples(content["images"], image_root, json_file)
    extra_keys = tuple(extra_annotation_keys or ())
    maskless = []
    for annotation in annotations:
        sample = samples.get(annotation["image_id"])
        if sample is None:
            raise _error(json_file, annotation, f"image {annotation['image_id']!r} is not in 'images'", "add the image")
        category_id = category_ids.get(annotation["category_id"])
        if category_id is None:
            problem = f"category {annotation['category_id']!r} is not in 'categories'"
            raise _error(json_file, annotation, problem, f"known ids are {sorted(category_ids)}")
        instance = _instance(annotation, category_id, extra_keys, json_file)
        if instance is None:
            maskless.append(annotation["id"])
        else:
            sample["annotations"].append(instance)
    if maskless:
        logger.warning(
            f"{json_file}: left out {len(maskless)} annotations whose polygons all have fewer than 3 points: "
            f"ids {_some(maskless)}. Give them a mask, or delete their 'segmentation' to keep the boxes."
        )
    logger.info(f"Read {len(samples)} images and {len(annotations) - len(maskless)} annotations from {json_file}")
    return list(samples.values())


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> list[Entry]:
    """Pair images with label maps, single-channel images of class indices, of the same name in another folder.

    Returns:
        One dict per pair, sorted by name: ``file_name`` and ``sem_seg_file_name``. What has no partner is left out
        with a warning.

    Raises:
        MissingFileError: a folder does not exist.
        DatasetError: no name is in both folders.
    """
    images, labels = _stems(image_root, image_ext), _stems(gt_root, gt_ext)
    paired = sorted(images & labels)
    if not paired:
        raise DatasetError(
            f"no image and label map share a name: {image_root} has {len(images)} *.{image_ext} files, {gt_root} has "
            f"{len(labels)} *.{gt_ext} files; check the folders and the two file endings"
        )
    unpaired = sorted(images ^ labels)
    if unpaired:
        logger.warning(f"Left out {len(unpaired)} files in only one of {image_root} and {gt_root}: {_some(unpaired)}")
    return [
        {
            "file_name": os.path.join(image_root, f"{stem}.{image_ext}"),
            "sem_seg_file_name": os.path.join(gt_root, f"{stem}.{gt_ext}"),
        }
        for stem in paired
    ]


def _stems(folder: str, extension: str) -> set[str]:
    if not PathManager.isdir(folder):
        raise MissingFileError(f"there is no folder {folder!r}; give the one that holds the *.{extension} files")
    ending = f".{extension}"
    return {name[: -len(ending)] for name in PathManager.ls(folder) if name.endswith(ending)}


def _read(json_file: str) -> dict[str, list[Entry]]:
    """Read and check the three lists; a file without annotations (a test set) gets an empty list."""
    if not PathManager.isfile(json_file):
        raise MissingFileError(f"annotation file {json_file!r} does not exist; check the path, or its download")
    with open(PathManager.get_local_path(json_file), encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise DatasetError(f"{json_file} is not valid JSON: {error}; it may be cut off, write it again") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{json_file}: expected an object with 'images', 'annotations' and 'categories'")
    if "annotations" not in content:
        logger.warning(f"{json_file} has no 'annotations': its images count as unlabelled")
    lists = {"annotations": [], **content}
    for key, required in (("images", IMAGE_KEYS), ("annotations", ANNOTATION_KEYS), ("categories", CATEGORY_KEYS)):
        if not isinstance(lists.get(key), list):
            found = f"is {type(content[key]).__name__}" if key in content else "is missing"
            raise DatasetError(f"{json_file}: {key!r} {found}; COCO's format needs a list of objects there")
        _check_keys(lists[key], required, key, json_file)
    return lists


def _check_keys(entries: list[Entry], required: frozenset[str], key: str, json_file: str) -> None:
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DatasetError(f"{json_file}: {key}[{index}] is {entry!r}; expected an object")
        if not required <= entry.keys():
            missing = ", ".join(sorted(required - entry.keys()))
            raise DatasetError(
                f"{json_file}: {key}[{index}] (id {entry.get('id')}) lacks {missing}; each needs "
                f"{', '.join(sorted(required))}"
            )


def _register_categories(categories: list[Entry], dataset_name: str | None, json_file: str) -> dict[int, int]:
    """Map the ids of the file to those of the samples, and tell the metadata."""
    _check_unique(categories, "category", json_file)
    categories = sorted(categories, key=lambda category: category["id"])
    if dataset_name is None:
        return {category["id"]: category["id"] for category in categories}
    contiguous_ids = {category["id"]: index for index, category in enumerate(categories)}
    metadata = MetadataCatalog.get(dataset_name)
    classes = [category["name"] for category in categories]
    for key, value in (("thing_classes", classes), ("thing_dataset_id_to_contiguous_id", contiguous_ids)):
        known = metadata.get(key)
        if known is None:
            metadata.set(**{key: value})
        elif type(value)(known) != value:
            raise DatasetError(
                f"dataset {dataset_name!r} was declared with {key} {known}, but {json_file} has {value}; remove the "
                "declaration, so that the file decides, or correct one of the two"
            )
    for key, value in keypoint_metadata_of(categories, json_file).items():
        if metadata.get(key) is None:
            metadata.set(**{key: value})
    return contiguous_ids


def _check_unique(entries: list[Entry], kind: str, json_file: str) -> None:
    if len({entry["id"] for entry in entries}) == len(entries):
        return
    seen: set[Any] = set()
    repeated = [entry["id"] for entry in entries if entry["id"] in seen or seen.add(entry["id"])]
    message = f"{json_file}: {len(repeated)} {kind} ids come twice: {_some(repeated)}; every {kind} needs its own id"
    if os.path.basename(json_file) not in FILES_WITH_KNOWN_DUPLICATES:
        raise DatasetError(message)
    logger.warning(message)


def _check_boxes(annotations: list[Entry], json_file: str) -> None:
    bad = [annotation for annotation in annotations if not _is_box(annotation["bbox"])]
    if bad:
        found = "; ".join(f"annotation {a['id']} of image {a['image_id']!r}: {a['bbox']}" for a in bad[:5])
        raise DatasetError(
            f"{json_file}: {len(bad)} boxes are not four finite numbers [x, y, width, height]: {found}. "
            "Correct or delete them. (Rotated boxes are five: [center x, center y, width, height, degrees].)"
        )
    flat = [a["id"] for a in annotations if a["bbox"][2] <= 0 or a["bbox"][3] <= 0]
    if flat:
        logger.warning(
            f"{json_file}: {len(flat)} boxes have no area (width or height <= 0) and cannot be learned: annotation "
            f"ids {_some(flat)}. Boxes are [x, y, width, height], not two corners."
        )


def _is_box(box: Any) -> bool:
    try:
        return len(box) in (4, 5) and all(math.isfinite(number) for number in box)
    except (TypeError, ValueError):
        return False


def _samples(images: list[Entry], image_root: str, json_file: str) -> dict[Any, Entry]:
    _check_unique(images, "image", json_file)
    return {
        image["id"]: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
        for image in sorted(images, key=lambda image: image["id"])
    }


def _instance(annotation: Entry, category_id: int, extra_keys: Iterable[str], json_file: str) -> Entry | None:
    """Build an instance of a sample; None if it should have a mask and its polygons enclose nothing."""
    if annotation.get("ignore"):
        raise _error(json_file, annotation, "it is marked 'ignore'", "mark such regions with 'iscrowd': 1 instead")
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
    if not all(isinstance(polygon, list) for polygon in segmentation):
        problem = f"its 'segmentation' is {str(segmentation)[:60]}"
        raise _error(json_file, annotation, problem, "expected an RLE object or polygons [[x0, y0, x1, y1, ...], ...]")
    return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _compressed_rle(annotation: Entry, json_file: str) -> Entry:
    rle = annotation["segmentation"]
    if not {"counts", "size"} <= rle.keys():
        problem = f"its 'segmentation' has only the keys {sorted(rle)}"
        raise _error(json_file, annotation, problem, "an RLE needs 'counts' and 'size' [height, width]")
    if not isinstance(rle["counts"], list):
        return rle
    height, width = rle["size"]
    if sum(rle["counts"]) != height * width:
        problem = f"its RLE counts sum to {sum(rle['counts'])}, not to {height} x {width}"
        raise _error(json_file, annotation, problem, "counts are lengths of runs, column by column, background first")
    from pycocotools import mask as coco_mask

    return coco_mask.frPyObjects(rle, height, width)


def _keypoints(annotation: Entry, json_file: str) -> list[float]:
    """Return x, y, visibility triples, from pixel indices to points of the plane."""
    keypoints = annotation["keypoints"]
    if not isinstance(keypoints, list) or len(keypoints) % 3:
        problem = f"its 'keypoints' are {str(keypoints)[:60]}"
        raise _error(json_file, annotation, problem, "expected a flat list [x, y, visibility, x, y, visibility, ...]")
    points = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
    points[:, :2] += 0.5
    return points.reshape(-1).tolist()


def _error(json_file: str, annotation: Entry, problem: str, remedy: str) -> DatasetError:
    where = f"annotation {annotation['id']} of image {annotation['image_id']!r}"
    return DatasetError(f"{json_file}: {where}: {problem}; {remedy}")


def _some(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
