"""Datasets in COCO's panoptic format: one PNG of segment ids per image, and a JSON file that describes segments."""

import os
from typing import Any

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.coco import load_coco_json, load_sem_seg
from detlib.data.datasets.json_files import read_json
from detlib.data.datasets.paths import Folder
from detlib.utils.errors import DatasetError

__all__ = [
    "load_coco_panoptic_json",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
    "with_label_maps",
]

Sample = dict[str, Any]


def register_coco_panoptic(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    instances_json: str | None = None,
    allow_outside: bool = False,
) -> None:
    """Register a panoptic dataset whose samples have ``pan_seg_file_name`` and ``segments_info``.

    Args:
        name: name for the config, for example ``coco_2017_train_panoptic``.
        metadata: ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``, classes and colors.
        image_root: folder of the images.
        panoptic_root: folder of the PNG files.
        panoptic_json: description of all segments.
        instances_json: the same things in COCO's instance format, for evaluation of boxes and masks.
        allow_outside: whether file names may lead out of these folders, as for :func:`load_coco_json`.
    """
    DatasetCatalog.register(
        name, lambda: load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, metadata, allow_outside)
    )
    MetadataCatalog.get(name).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        allow_outside=allow_outside,
        **metadata,
    )


def register_coco_panoptic_separated(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str,
    instances_json: str,
    allow_outside: bool = False,
) -> None:
    """Register a panoptic dataset as Panoptic FPN learns it: things as instances, stuff as a label map.

    Registers ``{name}_separated``, with ``annotations`` and ``sem_seg_file_name`` in its samples, and
    ``{name}_stuffonly`` with the label maps only. In these, 0 stands for all things and 255 is ignored.

    Args:
        name: start of both names.
        metadata: as for :func:`register_coco_panoptic`.
        image_root: folder of the images.
        panoptic_root: folder of the PNG files of segment ids.
        panoptic_json: description of all segments.
        sem_seg_root: folder of the label maps.
        instances_json: the things in COCO's instance format.
        allow_outside: whether file names may lead out of these folders, as for :func:`load_coco_json`.
    """
    separated, stuff_only = f"{name}_separated", f"{name}_stuffonly"
    DatasetCatalog.register(
        separated,
        lambda: with_label_maps(
            load_coco_json(instances_json, image_root, separated, allow_outside=allow_outside),
            load_sem_seg(sem_seg_root, image_root),
        ),
    )
    MetadataCatalog.get(separated).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        sem_seg_root=sem_seg_root,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        allow_outside=allow_outside,
        **metadata,
    )
    DatasetCatalog.register(stuff_only, lambda: load_sem_seg(sem_seg_root, image_root))
    MetadataCatalog.get(stuff_only).set(
        sem_seg_root=sem_seg_root, image_root=image_root, evaluator_type="sem_seg", ignore_label=255, **metadata
    )


def load_coco_panoptic_json(
    json_file: str, image_dir: str, gt_dir: str, meta: dict[str, Any], allow_outside: bool = False
) -> list[Sample]:
    """Read a panoptic JSON file.

    Args:
        json_file: description of all segments.
        image_dir: folder of the images.
        gt_dir: folder of the PNG files.
        meta: metadata with ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``.
        allow_outside: whether file names may lead out of these folders, as for :func:`load_coco_json`.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``pan_seg_file_name`` and ``segments_info``, whose
        ``category_id`` is contiguous and whose ``isthing`` says of which kind it is.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged, or a category is in neither map of ``meta``.
    """
    content = read_json(json_file)
    images = Folder(image_dir, json_file, allow_outside)
    label_maps = Folder(gt_dir, json_file, allow_outside, argument="panoptic_root")
    try:
        image_names = {image["id"]: image["file_name"] for image in content.get("images", [])}
        return [_sample(entry, image_names, images, label_maps, meta) for entry in content["annotations"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{json_file} is not in COCO's panoptic format ({type(error).__name__}: {error}); expected "
            "'annotations' with image_id, file_name and segments_info"
        ) from error


def _sample(
    entry: dict[str, Any], image_names: dict[Any, str], images: Folder, label_maps: Folder, meta: dict[str, Any]
) -> Sample:
    # COCO names the label map after the photograph, which is a JPEG.
    default = os.path.splitext(entry["file_name"])[0] + ".jpg"
    where = f"image {entry['image_id']!r}"
    return {
        "file_name": images.join(image_names.get(entry["image_id"], default), where),
        "image_id": entry["image_id"],
        "pan_seg_file_name": label_maps.join(entry["file_name"], where),
        "segments_info": [_contiguous(segment, entry["image_id"], meta) for segment in entry["segments_info"]],
    }


def _contiguous(segment: dict[str, Any], image_id: Any, meta: dict[str, Any]) -> dict[str, Any]:
    category_id = segment["category_id"]
    if type(segment["id"]) is not int:
        raise DatasetError(f"image {image_id!r} has a segment with the id {segment['id']!r}; expected a whole number")
    for is_thing, key in ((True, "thing_dataset_id_to_contiguous_id"), (False, "stuff_dataset_id_to_contiguous_id")):
        if category_id in meta[key]:
            return {**segment, "category_id": meta[key][category_id], "isthing": is_thing}
    raise DatasetError(
        f"segment {segment['id']} of image {image_id!r} has category {category_id!r}, which is neither in "
        "thing_dataset_id_to_contiguous_id nor in stuff_dataset_id_to_contiguous_id of the metadata; add it there"
    )


def with_label_maps(instance_samples: list[Sample], label_samples: list[Sample]) -> list[Sample]:
    """Samples of instances, each with the ``sem_seg_file_name`` of the same image.

    Raises:
        DatasetError: an image has none.
    """
    label_files = {sample["file_name"]: sample["sem_seg_file_name"] for sample in label_samples}
    missing = [sample["file_name"] for sample in instance_samples if sample["file_name"] not in label_files]
    if missing:
        raise DatasetError(
            f"{len(missing)} images have instances but no label map, for example {missing[0]}; make the maps, or "
            "leave the images out of the JSON file of instances"
        )
    return [{**sample, "sem_seg_file_name": label_files[sample["file_name"]]} for sample in instance_samples]
