"""Datasets in COCO's JSON format: read, register, write; and pairs of images and semantic label maps.

A box in the files is XYWH in pixels, or XYWHA, a rotated box, if it is five numbers. A keypoint there is the index of
a pixel, in the loaded samples a point of the plane in which pixel (0, 0) covers [0, 1) x [0, 1): reading adds 0.5,
writing takes it away.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.coco_export import convert_to_coco_json
from detlib.data.datasets.coco_format import (
    annotation_error,
    check_boxes,
    check_unique,
    parse_instance,
    read_coco_file,
    some,
)
from detlib.data.datasets.coco_keypoints import keypoint_metadata_of
from detlib.data.datasets.coco_values import short
from detlib.data.datasets.paths import Folder
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["convert_to_coco_json", "load_coco_json", "load_sem_seg", "register_coco_instances"]

logger = logging.getLogger(__name__)

Entry = dict[str, Any]


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str, image_root: str, allow_outside: bool = False
) -> None:
    """Register a dataset in COCO's format for detection, instance segmentation or keypoints.

    No file is read before the dataset is first asked for.

    Args:
        name: name for the config, for example ``cells_train``.
        metadata: further metadata, may be ``{}``. ``keypoint_names``, ``keypoint_flip_map`` and
            ``keypoint_connection_rules`` are by default those of the first category that has ``keypoints``.
        json_file: annotations.
        image_root: folder to which the file names in ``json_file`` are relative.
        allow_outside: whether they may lead out of that folder, see :func:`load_coco_json`.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name, allow_outside=allow_outside))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, allow_outside=allow_outside, evaluator_type="coco", **metadata
    )


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
    allow_outside: bool = False,
) -> list[Entry]:
    """Read a COCO JSON file of boxes, masks and keypoints.

    Args:
        json_file: annotations.
        image_root: folder to which the file names in ``json_file`` are relative.
        dataset_name: if given, the metadata of that dataset gets ``thing_classes`` and
            ``thing_dataset_id_to_contiguous_id``, and category ids are mapped to 0 ... K - 1 in the order of the ids
            in the file. Without it, ids stay as they are.
        extra_annotation_keys: keys of an annotation to carry over to the samples as they are, where present.
        allow_outside: whether file names may lead out of ``image_root``, by ``..`` or as absolute paths. Without it,
            they may be absolute if they are below it; where it is empty, they are paths already.

    Returns:
        One dict per image in the order of image ids: ``file_name``, ``height``, ``width``, ``image_id`` and
        ``annotations``, each with ``bbox``, ``bbox_mode``, ``iscrowd``, ``category_id`` and, where the file has them,
        ``segmentation`` (polygons, or a compressed RLE) and ``keypoints``.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged or an entry of it is; the message names the entry.
    """
    content = read_coco_file(json_file)
    category_ids = _register_categories(content["categories"], dataset_name, json_file)
    annotations = content["annotations"]
    check_unique(annotations, "annotation", json_file)
    check_boxes(annotations, json_file)
    samples = _samples(content["images"], Folder(image_root, json_file, allow_outside), json_file)
    extra_keys = tuple(extra_annotation_keys or ())
    maskless = []
    for annotation in annotations:
        sample = samples.get(annotation["image_id"])
        if sample is None:
            raise annotation_error(
                json_file, annotation, f"image {short(annotation['image_id'])} is not in 'images'", "add the image"
            )
        category_id = category_ids.get(annotation["category_id"])
        if category_id is None:
            problem = f"category {short(annotation['category_id'])} is not in 'categories'"
            raise annotation_error(json_file, annotation, problem, f"known ids are {sorted(category_ids)}")
        instance = parse_instance(annotation, category_id, extra_keys, json_file)
        if instance is None:
            maskless.append(annotation["id"])
        else:
            sample["annotations"].append(instance)
    if maskless:
        logger.warning(
            f"{json_file}: left out {len(maskless)} annotations whose polygons all have fewer than 3 points: "
            f"ids {some(maskless)}. Give them a mask, or delete their 'segmentation' to keep the boxes."
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
        logger.warning(f"Left out {len(unpaired)} files in only one of {image_root} and {gt_root}: {some(unpaired)}")
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


def _register_categories(categories: list[Entry], dataset_name: str | None, json_file: str) -> dict[int, int]:
    """Map the ids of the file to those of the samples, and tell the metadata."""
    check_unique(categories, "category", json_file)
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


def _samples(images: list[Entry], folder: Folder, json_file: str) -> dict[Any, Entry]:
    check_unique(images, "image", json_file)
    return {image["id"]: sample_of(image, folder) for image in sorted(images, key=lambda image: image["id"])}


def sample_of(image: Entry, folder: Folder) -> Entry:
    """The sample of an entry of "images", still without objects.

    Raises:
        DatasetError: its file name is none, or leads out of the folder.
    """
    return {
        "file_name": folder.join(image["file_name"], f"image {image['id']!r}"),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "annotations": [],
    }
