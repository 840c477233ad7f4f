"""Data for Panoptic FPN from COCO's own files: a panoptic JSON with its PNGs, and a JSON of the things as instances.

The classes of the pixels are read from the panoptic PNGs: 0 stands for all things, 1 and up for stuff, 255 for pixels
in no segment. So no label maps need be made beforehand.
"""

import os
from typing import Any

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.builtin_meta import categories_with_colors, separated_metadata
from detlib.data.datasets.coco import load_coco_json
from detlib.data.datasets.coco_format import check_unique
from detlib.data.datasets.coco_panoptic import load_coco_panoptic_json
from detlib.data.datasets.coco_values import check_colors, check_entries
from detlib.data.datasets.json_files import read_json
from detlib.utils.errors import DatasetError

__all__ = ["load_panoptic_with_instances", "register_panoptic_with_instances"]


def register_panoptic_with_instances(
    name: str,
    panoptic_json: str,
    image_root: str,
    panoptic_root: str,
    instances_json: str,
    allow_outside: bool = False,
) -> None:
    """Register a panoptic dataset that a PanopticFPN trains on. Classes are read from the files when it is loaded.

    Args:
        name: name for the config, for example ``cells_train``.
        panoptic_json: description of all segments.
        image_root: folder of the images.
        panoptic_root: folder of the PNG files of segment ids.
        instances_json: the things in COCO's instance format.
        allow_outside: whether file names may lead out of these folders, as for :func:`load_coco_json`.
    """
    DatasetCatalog.register(
        name,
        lambda: load_panoptic_with_instances(
            panoptic_json, image_root, panoptic_root, instances_json, name, allow_outside
        ),
    )
    MetadataCatalog.get(name).set(
        panoptic_json=panoptic_json,
        image_root=image_root,
        panoptic_root=panoptic_root,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        allow_outside=allow_outside,
    )


def load_panoptic_with_instances(
    panoptic_json: str,
    image_root: str,
    panoptic_root: str,
    instances_json: str,
    dataset_name: str,
    allow_outside: bool = False,
) -> list[dict[str, Any]]:
    """Join the samples of both files.

    Args:
        dataset_name: its metadata gets the classes, colors and ids of things and of stuff.

    Returns:
        The samples of ``instances_json``, each with ``pan_seg_file_name`` and ``segments_info`` as of
        :func:`load_coco_panoptic_json`, whose segments also have their ``sem_seg_label``.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: a file is damaged, or the two do not fit together.
    """
    metadata = _metadata(panoptic_json)
    panoptic = {
        sample["image_id"]: sample
        for sample in load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, metadata, allow_outside)
    }
    for segment in (segment for sample in panoptic.values() for segment in sample["segments_info"]):
        segment["sem_seg_label"] = 0 if segment["isthing"] else segment["category_id"]
    _check_things(metadata, instances_json)
    samples = load_coco_json(instances_json, image_root, dataset_name, allow_outside=allow_outside)
    missing = [sample["file_name"] for sample in samples if sample["image_id"] not in panoptic]
    if missing:
        raise DatasetError(
            f"{len(missing)} images of {instances_json} are not in {panoptic_json}, for example {missing[0]}; images "
            "go by their ids, which must be those of the other file"
        )
    MetadataCatalog.get(dataset_name).set(**metadata)
    return [{**panoptic[sample["image_id"]], **sample} for sample in samples]


def _metadata(panoptic_json: str) -> dict[str, Any]:
    content = read_json(panoptic_json)
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, list):
        raise DatasetError(
            f"{panoptic_json} is not in COCO's panoptic format; expected 'categories' with id, name and isthing"
        )
    check_entries(categories, frozenset({"id", "name", "isthing"}), "categories", panoptic_json)
    check_unique(categories, "category", panoptic_json)
    check_colors(categories, panoptic_json)
    categories = sorted(categories, key=lambda category: category["id"])
    colors = categories_with_colors([(c["id"], c["name"], c["isthing"]) for c in categories])
    return separated_metadata([{**color, **category} for color, category in zip(colors, categories, strict=True)])


def _check_things(metadata: dict[str, Any], instances_json: str) -> None:
    """Both files must number the things alike."""
    content = read_json(instances_json)
    try:
        categories = {c["id"]: c["name"] for c in content["categories"]}
    except (KeyError, TypeError):
        return  # The reader of instances says what is wrong.
    things = dict(zip(metadata["thing_dataset_id_to_contiguous_id"], metadata["thing_classes"], strict=True))
    if categories != things:
        raise DatasetError(
            f"{os.path.basename(instances_json)} has the categories {categories}, but the things of the panoptic file "
            f"are {things}; make them the same in {instances_json}"
        )
