"""Cityscapes (https://arxiv.org/abs/1604.01685): instances and label maps of street scenes.

Read from the files of the download: ``leftImg8bit/{split}/{city}/*_leftImg8bit.png`` and, per image,
``gtFine/{split}/{city}/*_gtFine_polygons.json``, ``*_instanceIds.png`` and ``*_labelIds.png``; the maps
``*_labelTrainIds.png`` are made by ``tools/prepare_cityscapes.py``. Masks are exact: an object is what those in front
of it leave of its polygon, as in ``instanceIds``.
"""

import argparse
import functools
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from detlib.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detlib.data.datasets.coco_values import polygon_problem, short, size_problem
from detlib.data.datasets.json_files import read_json
from detlib.data.datasets.mask_outlines import mask_to_polygons
from detlib.data.image_reading import open_image
from detlib.data.label_maps import read_label_map
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["load_cityscapes_instances", "load_cityscapes_semantic", "main"]

logger = logging.getLogger(__name__)

Sample = dict[str, Any]

IMAGE_SUFFIX = "leftImg8bit.png"
# In instanceIds: id * 1000 + number for an object, id alone for what is no object or a group of objects.
INSTANCE_DIVISOR = 1000
THINGS = [category for category in CITYSCAPES_CATEGORIES if category["isthing"]]
THING_OF_NAME = {category["name"]: index for index, category in enumerate(THINGS)}
THING_OF_ID = {category["id"]: index for index, category in enumerate(THINGS)}
MIN_FILES_FOR_PROCESSES = 100
# A plate is part of its car; the benchmark's maps do not have it either.
NEVER_DRAWN = ("license plate", "deleted")


class CityscapesFiles(NamedTuple):
    """Files of one image."""

    image: str
    instance_ids: str
    label_ids: str
    train_ids: str
    polygons: str


def load_cityscapes_instances(
    image_dir: str, gt_dir: str, from_json: bool = True, to_polygons: bool = True
) -> list[Sample]:
    """Read the objects of the eight classes of things.

    Args:
        image_dir: such as ``cityscapes/leftImg8bit/train``.
        gt_dir: such as ``cityscapes/gtFine/train``.
        from_json: read ``*_polygons.json``, else ``*_instanceIds.png``. Masks are the same; a group of objects is
            one crowd region per polygon, or one per class.
        to_polygons: give masks as polygons, else as RLE.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``height``, ``width`` and ``annotations`` with
        ``category_id``, ``bbox``, ``bbox_mode``, ``iscrowd`` and ``segmentation``.

    Raises:
        MissingFileError: a folder or file is missing.
        DatasetError: there are no images, or an annotation is damaged.
    """
    files = cityscapes_files(image_dir, gt_dir)
    samples = _map(functools.partial(_instance_sample, from_json=from_json, to_polygons=to_polygons), files)
    logger.info(f"Read {len(samples)} images from {image_dir}")
    return samples


def load_cityscapes_semantic(image_dir: str, gt_dir: str) -> list[Sample]:
    """Pair images with label maps of train ids, 0 to 18 and 255.

    Returns:
        One dict per image: ``file_name``, ``sem_seg_file_name``, ``height`` and ``width``.

    Raises:
        MissingFileError: a folder is missing, or the label maps were not made yet.
    """
    files = cityscapes_files(image_dir, gt_dir)
    for file in files:
        require_train_ids(file.train_ids)
    samples = []
    for file in files:
        with open_image(file.train_ids) as label_map:
            width, height = label_map.size
        sizes = {"height": height, "width": width}
        samples.append({"file_name": file.image, "sem_seg_file_name": file.train_ids, **sizes})
    return samples


def require_train_ids(path: str) -> None:
    """Raise MissingFileError unless the label map of train ids is there."""
    if not PathManager.isfile(path):
        raise MissingFileError(
            f"the label map {path} does not exist. It is not part of the download: make it, and all others, by "
            "`python tools/prepare_cityscapes.py`"
        )


def cityscapes_files(image_dir: str, gt_dir: str) -> list[CityscapesFiles]:
    """List images by city and name, with the files of annotations that belong to them, which may not exist."""
    if not PathManager.isdir(image_dir):
        raise MissingFileError(f"there is no folder {image_dir!r}; expected one that holds a folder per city")
    files = []
    for city in sorted(PathManager.ls(image_dir)):
        folder = os.path.join(image_dir, city)
        for name in sorted(PathManager.ls(folder)) if PathManager.isdir(folder) else ():
            if name.endswith(IMAGE_SUFFIX):
                start = os.path.join(gt_dir, city, name.removesuffix(IMAGE_SUFFIX) + "gtFine_")
                endings = ("instanceIds.png", "labelIds.png", "labelTrainIds.png", "polygons.json")
                files.append(CityscapesFiles(os.path.join(folder, name), *(start + ending for ending in endings)))
    if not files:
        raise DatasetError(
            f"{image_dir} has no files */*_{IMAGE_SUFFIX}; give the folder of a split, such as .../train"
        )
    return files


def _map(function: Callable[[CityscapesFiles], Sample], files: list[CityscapesFiles]) -> list[Sample]:
    """Call the function for each file, in several processes where there are many and the system can fork."""
    if len(files) < MIN_FILES_FOR_PROCESSES or "fork" not in multiprocessing.get_all_start_methods():
        return [function(file) for file in files]
    with multiprocessing.get_context("fork").Pool(min(8, os.cpu_count() or 1)) as pool:
        return pool.map(function, files, chunksize=8)


def _instance_sample(file: CityscapesFiles, from_json: bool, to_polygons: bool) -> Sample:
    read = _objects_of_json if from_json else _objects_of_png
    (height, width), objects = read(file)
    return {
        "file_name": file.image,
        "image_id": os.path.basename(file.image),
        "height": height,
        "width": width,
        "annotations": [
            _instance(mask, offset, category_id, is_crowd, (height, width), to_polygons)
            for mask, offset, category_id, is_crowd in objects
        ],
    }


# A mask cut out of the image, x and y of its corner there, the category, and whether it is a crowd region.
Object = tuple[np.ndarray, tuple[int, int], int, bool]


def _objects_of_json(file: CityscapesFiles) -> tuple[tuple[int, int], list[Object]]:
    if not PathManager.isfile(file.polygons):
        raise MissingFileError(f"annotation file {file.polygons!r} does not exist; unpack gtFine_trainvaltest.zip")
    content = read_json(file.polygons)
    try:
        size = (content["imgHeight"], content["imgWidth"])
        polygons = [
            (str(o["label"]), np.array(o["polygon"], dtype=np.int64).reshape(-1, 2))
            for o in content["objects"]
            if o["label"] not in NEVER_DRAWN and not o.get("deleted") and len(o["polygon"]) >= 3
        ]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"{file.polygons} is not in Cityscapes' format: {error!r}") from error
    problem = size_problem(list(size))
    if problem:
        raise DatasetError(f"{file.polygons} has the size {short(size)}, {problem}")
    for label, polygon in polygons:
        problem = polygon_problem(polygon.reshape(-1).tolist())
        if problem:
            raise DatasetError(f"{file.polygons}: a polygon of {label!r} {problem}")
    # What comes later lies in front. Pillow drew the maps of the download, so that the pixels are the same.
    canvas = Image.new("I", size[::-1], -1)
    draw = ImageDraw.Draw(canvas)
    for index, (_, polygon) in enumerate(polygons):
        draw.polygon(polygon.reshape(-1).tolist(), fill=index)
    front = np.asarray(canvas)
    objects = []
    for index, (label, polygon) in enumerate(polygons):
        name = label.removesuffix("group")
        if name in THING_OF_NAME:
            objects += _cut_out(front, polygon, index, THING_OF_NAME[name], name != label)
    return size, objects


def _cut_out(front: np.ndarray, polygon: np.ndarray, index: int, category_id: int, is_crowd: bool) -> list[Object]:
    """The visible part of a polygon, if there is any."""
    x0, y0 = polygon.min(axis=0).clip(0).tolist()
    x1, y1 = (polygon.max(axis=0) + 1).clip(0).tolist()
    mask = front[y0:y1, x0:x1] == index
    return [(mask, (x0, y0), category_id, is_crowd)] if mask.any() else []


def _objects_of_png(file: CityscapesFiles) -> tuple[tuple[int, int], list[Object]]:
    if not PathManager.isfile(file.instance_ids):
        raise MissingFileError(f"annotation file {file.instance_ids!r} does not exist; unpack gtFine_trainvaltest.zip")
    ids = read_label_map(file.instance_ids).astype(np.int32)
    objects = []
    for instance_id in np.unique(ids).tolist():
        is_crowd = instance_id < INSTANCE_DIVISOR
        category_id = THING_OF_ID.get(instance_id if is_crowd else instance_id // INSTANCE_DIVISOR)
        if category_id is not None:
            objects.append((ids == instance_id, (0, 0), category_id, is_crowd))
    return ids.shape, objects


def _instance(
    mask: np.ndarray, offset: tuple[int, int], category_id: int, is_crowd: bool, size: tuple[int, int], polygons: bool
) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    x0, y0 = int(columns[0]) + offset[0], int(rows[0]) + offset[1]
    height, width = mask.shape
    if polygons:
        corner = np.array([x0, y0])
        segmentation = [(np.reshape(p, (-1, 2)) + corner).reshape(-1).tolist() for p in mask_to_polygons(mask)]
    else:
        from pycocotools import mask as coco_mask

        whole = np.zeros(size, dtype=np.uint8, order="F")
        whole[y0 : y0 + height, x0 : x0 + width] = mask
        segmentation = coco_mask.encode(whole)
    return {
        "iscrowd": int(is_crowd),
        "category_id": category_id,
        "bbox": [x0, y0, x0 + width, y0 + height],
        "bbox_mode": BoxMode.XYXY_ABS,
        "segmentation": segmentation,
    }


def main() -> None:
    """Print how many images and objects of each class a folder has: ``python -m detlib.data.datasets.cityscapes``."""
    parser = argparse.ArgumentParser(description="Count the objects of Cityscapes.")
    parser.add_argument("image_dir", help="such as datasets/cityscapes/leftImg8bit/train")
    parser.add_argument("gt_dir", help="such as datasets/cityscapes/gtFine/train")
    args = parser.parse_args()
    samples = load_cityscapes_instances(args.image_dir, args.gt_dir)
    counts = Counter(instance["category_id"] for sample in samples for instance in sample["annotations"])
    print(f"{len(samples)} images")
    for index, category in enumerate(THINGS):
        print(f"{category['name']}: {counts[index]}")


if __name__ == "__main__":
    main()
