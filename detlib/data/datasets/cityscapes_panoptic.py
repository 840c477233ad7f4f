"""Cityscapes with panoptic labels, in the form that ``tools/prepare_cityscapes.py`` makes of the download."""

import os
from typing import Any

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, panoptic_metadata
from detlib.data.datasets.cityscapes import IMAGE_SUFFIX, require_train_ids
from detlib.data.datasets.files import require_files
from detlib.data.datasets.json_files import read_json
from detlib.data.datasets.paths import Folder
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["get_cityscapes_panoptic_files", "load_cityscapes_panoptic", "register_all_cityscapes_panoptic"]


def get_cityscapes_panoptic_files(
    image_dir: str, gt_dir: str, json_info: dict[str, Any]
) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return image, PNG of segment ids and segments of each annotated image, with category ids of the file.

    Args:
        image_dir: such as ``cityscapes/leftImg8bit/train``.
        gt_dir: folder of the PNG files.
        json_info: content of the JSON file.

    Raises:
        DatasetError: an image or its PNG file is missing.
    """
    images = {}
    for city in sorted(PathManager.ls(image_dir)):
        folder = os.path.join(image_dir, city)
        for name in sorted(PathManager.ls(folder)) if PathManager.isdir(folder) else ():
            if name.endswith("_" + IMAGE_SUFFIX):
                images[name.removesuffix("_" + IMAGE_SUFFIX)] = os.path.join(folder, name)
    files, label_maps = [], Folder(gt_dir, "the panoptic JSON file", argument="gt_dir")
    for annotation in json_info["annotations"]:
        image_file = images.get(annotation["image_id"])
        label_file = label_maps.join(annotation["file_name"], f"image {annotation['image_id']!r}")
        if image_file is None:
            raise DatasetError(f"no image in {image_dir} is named {annotation['image_id']}_{IMAGE_SUFFIX}")
        if not PathManager.isfile(label_file):
            raise MissingFileError(f"{label_file} does not exist; make it by `python tools/prepare_cityscapes.py`")
        files.append((image_file, label_file, annotation["segments_info"]))
    if not files:
        raise DatasetError(f"the panoptic file of {gt_dir} has no annotations")
    return files


def load_cityscapes_panoptic(image_dir: str, gt_dir: str, gt_json: str, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """Read panoptic annotations.

    Args:
        image_dir: such as ``cityscapes/leftImg8bit/train``.
        gt_dir: folder of the PNG files of segment ids.
        gt_json: description of all segments.
        meta: ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``sem_seg_file_name`` (train ids), ``pan_seg_file_name`` and
        ``segments_info`` with contiguous ``category_id``.

    Raises:
        MissingFileError: a file is missing.
        DatasetError: the file is damaged, or a category is unknown.
    """
    if not PathManager.isfile(gt_json):
        raise MissingFileError(f"{gt_json!r} does not exist; make it by `python tools/prepare_cityscapes.py`")
    json_info = read_json(gt_json)
    try:
        return _samples(image_dir, gt_dir, gt_json, json_info, meta)
    except (AttributeError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{gt_json} is not in COCO's panoptic format ({type(error).__name__}: {error}); make it anew by "
            "`python tools/prepare_cityscapes.py`"
        ) from error


def _samples(
    image_dir: str, gt_dir: str, gt_json: str, json_info: dict[str, Any], meta: dict[str, Any]
) -> list[dict[str, Any]]:
    things = meta["thing_dataset_id_to_contiguous_id"]
    contiguous_ids = {**things, **meta["stuff_dataset_id_to_contiguous_id"]}
    samples = []
    for image_file, label_file, segments in get_cityscapes_panoptic_files(image_dir, gt_dir, json_info):
        train_ids = image_file.replace("leftImg8bit.png", "gtFine_labelTrainIds.png").replace("leftImg8bit", "gtFine")
        require_train_ids(train_ids)
        unknown = [s["category_id"] for s in segments if s["category_id"] not in contiguous_ids]
        if unknown:
            raise DatasetError(
                f"{gt_json}: category {unknown[0]!r} of {label_file} is unknown; known are {sorted(contiguous_ids)}"
            )
        samples.append(
            {
                "file_name": image_file,
                "image_id": "_".join(os.path.splitext(os.path.basename(image_file))[0].split("_")[:3]),
                "sem_seg_file_name": train_ids,
                "pan_seg_file_name": label_file,
                "segments_info": [
                    {**s, "category_id": contiguous_ids[s["category_id"]], "isthing": s["category_id"] in things}
                    for s in segments
                ],
            }
        )
    return samples


def register_all_cityscapes_panoptic(root: str) -> None:
    """Register ``cityscapes_fine_panoptic_train`` and ``..._val``.

    Args:
        root: folder that holds ``cityscapes/``.
    """
    metadata = panoptic_metadata(CITYSCAPES_CATEGORIES)
    for split in ("train", "val"):
        name = f"cityscapes_fine_panoptic_{split}"
        image_dir = os.path.join(root, "cityscapes/leftImg8bit", split)
        gt_dir = os.path.join(root, f"cityscapes/gtFine/cityscapes_panoptic_{split}")
        gt_json = f"{gt_dir}.json"
        DatasetCatalog.register(
            name, lambda x=image_dir, y=gt_dir, z=gt_json: load_cityscapes_panoptic(x, y, z, metadata)
        )
        MetadataCatalog.get(name).set(
            panoptic_root=gt_dir,
            image_root=image_dir,
            panoptic_json=gt_json,
            gt_dir=os.path.join(root, "cityscapes/gtFine", split),
            evaluator_type="cityscapes_panoptic_seg",
            ignore_label=255,
            label_divisor=1000,
            **metadata,
        )
        remedy = "Of these, cityscapes_panoptic_* are made by `python tools/prepare_cityscapes.py`."
        require_files(name, root, (image_dir, gt_dir, gt_json), remedy)
