"""The public datasets that are known by name, once their files are in the folder of datasets.

That folder is ``$DETLIB_DATASETS``, else ``$DETECTRON2_DATASETS``, else ``./datasets``. Registering reads no file.
"""

import os
from collections.abc import Iterable

from detlib.data.datasets.builtin_meta import (
    COCO_CATEGORIES,
    instance_metadata,
    panoptic_metadata,
    person_keypoint_metadata,
    separated_metadata,
)
from detlib.data.datasets.coco import register_coco_instances
from detlib.data.datasets.coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated
from detlib.data.datasets.lazy import prepare_before_loading
from detlib.utils.errors import MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["datasets_root", "register_all_coco"]

# Name after "coco_" -> folder of images, file of boxes; below <root>/coco and <root>/coco/annotations.
COCO_INSTANCES = {
    "2014_train": ("train2014", "instances_train2014.json"),
    "2014_val": ("val2014", "instances_val2014.json"),
    "2014_minival": ("val2014", "instances_minival2014.json"),
    "2014_valminusminival": ("val2014", "instances_valminusminival2014.json"),
    "2017_train": ("train2017", "instances_train2017.json"),
    "2017_val": ("val2017", "instances_val2017.json"),
    "2017_test": ("test2017", "image_info_test2017.json"),
    "2017_test-dev": ("test2017", "image_info_test-dev2017.json"),
    "2017_val_100": ("val2017", "instances_val2017_100.json"),
}
COCO_KEYPOINTS = ("2014_train", "2014_val", "2014_minival", "2014_valminusminival", "2017_train", "2017_val")
COCO_KEYPOINTS += ("2017_val_100",)
COCO_PANOPTIC = ("2017_train", "2017_val", "2017_val_100")


def datasets_root() -> str:
    """Return the folder of datasets that the environment names."""
    root = os.environ.get("DETLIB_DATASETS") or os.environ.get("DETECTRON2_DATASETS") or "datasets"
    return os.path.expanduser(root)


def register_all_coco(root: str) -> None:
    """Register COCO of 2014 and 2017: instances, person keypoints, and panoptic in three forms.

    Args:
        root: folder that holds ``coco/``.
    """
    for split, (images, json_name) in COCO_INSTANCES.items():
        paths = _paths(root, f"annotations/{json_name}", images)
        register_coco_instances(f"coco_{split}", instance_metadata(COCO_CATEGORIES), *paths)
        _require(f"coco_{split}", root, paths)
    for split in COCO_KEYPOINTS:
        images, json_name = COCO_INSTANCES[split]
        paths = _paths(root, f"annotations/{json_name.replace('instances', 'person_keypoints')}", images)
        register_coco_instances(f"keypoints_coco_{split}", person_keypoint_metadata(), *paths)
        _require(f"keypoints_coco_{split}", root, paths)
    for split in COCO_PANOPTIC:
        _register_panoptic(root, split)


def _register_panoptic(root: str, split: str) -> None:
    name = f"coco_{split}_panoptic"
    images, instances_name = COCO_INSTANCES[split]
    suffix = instances_name.removeprefix("instances_").removesuffix(".json")  # Such as val2017_100.
    image_root, panoptic_root, panoptic_json, stuff_root, instances_json = _paths(
        root,
        images,
        f"panoptic_{suffix}",
        f"annotations/panoptic_{suffix}.json",
        f"panoptic_stuff_{suffix}",
        f"annotations/{instances_name}",
    )
    register_coco_panoptic(
        name, panoptic_metadata(COCO_CATEGORIES), image_root, panoptic_root, panoptic_json, instances_json
    )
    _require(name, root, (image_root, panoptic_root, panoptic_json))
    register_coco_panoptic_separated(
        name,
        separated_metadata(COCO_CATEGORIES),
        image_root,
        panoptic_root,
        panoptic_json,
        stuff_root,
        instances_json,
    )
    _require(f"{name}_separated", root, (image_root, stuff_root, instances_json))
    _require(f"{name}_stuffonly", root, (image_root, stuff_root))


def _paths(root: str, *relative: str) -> list[str]:
    return [os.path.join(root, "coco", path) for path in relative]


def _require(name: str, root: str, paths: Iterable[str]) -> None:
    """Make loading the dataset fail with the expected tree when one of the paths is missing."""
    paths = tuple(paths)

    def check() -> None:
        missing = [path for path in paths if not PathManager.exists(path)]
        if missing:
            tree = ", ".join(os.path.relpath(path, root) for path in paths)
            raise MissingFileError(
                f"dataset {name!r} lacks {', '.join(missing)}. Set the environment variable DETLIB_DATASETS to the "
                f"folder that holds {tree}; it is {os.path.abspath(root)!r} now. Own data is declared under "
                "DATASETS.REGISTER in the config."
            )

    prepare_before_loading(name, check)
