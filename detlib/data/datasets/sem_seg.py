"""Datasets for semantic segmentation: images and label maps, whose pixel values are classes."""

from collections.abc import Sequence
from typing import Any

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.builtin_meta import categories_with_colors
from detlib.data.datasets.coco import load_sem_seg
from detlib.data.datasets.coco_values import check_colors, check_entries, check_one_kind_of_ids, short
from detlib.data.datasets.json_files import read_json
from detlib.data.datasets.paths import Folder
from detlib.utils.errors import DatasetError
from detlib.utils.file_io import PathManager

__all__ = ["load_sem_seg_json", "register_sem_seg", "register_sem_seg_folders"]

IMAGE_KEYS = frozenset({"id", "file_name", "sem_seg_file_name", "height", "width"})
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp")


def register_sem_seg(
    name: str, json_file: str, image_root: str, sem_seg_root: str, allow_outside: bool = False
) -> None:
    """Register pairs of images and label maps that a JSON file lists, see :func:`load_sem_seg_json`.

    Args:
        name: name for the config, for example ``fields_train``.
        json_file: categories, and the pairs.
        image_root: folder of the images.
        sem_seg_root: folder of the label maps.
        allow_outside: whether file names may lead out of these folders, as for :func:`load_coco_json`.
    """
    DatasetCatalog.register(name, lambda: load_sem_seg_json(json_file, image_root, sem_seg_root, name, allow_outside))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, sem_seg_root=sem_seg_root, evaluator_type="sem_seg"
    )


def register_sem_seg_folders(
    name: str, image_root: str, sem_seg_root: str, classes: Sequence[str], ignore_label: int = 255
) -> None:
    """Register a folder of images and one of label maps (PNG) of the same names.

    Args:
        name: name for the config, for example ``fields_train``.
        image_root: folder of the images, which all have the same ending.
        sem_seg_root: folder of the label maps.
        classes: names of the pixel values 0, 1, ...
        ignore_label: pixel value that does not count.
    """
    DatasetCatalog.register(name, lambda: load_sem_seg(sem_seg_root, image_root, image_ext=_ending(image_root)))
    MetadataCatalog.get(name).set(
        image_root=image_root,
        sem_seg_root=sem_seg_root,
        evaluator_type="sem_seg",
        ignore_label=ignore_label,
        stuff_classes=list(classes),
        stuff_colors=_colors(classes),
    )


def load_sem_seg_json(
    json_file: str,
    image_root: str,
    sem_seg_root: str,
    dataset_name: str | None = None,
    allow_outside: bool = False,
) -> list[dict[str, Any]]:
    """Read a JSON file like COCO's, whose images have a label map each::

        {"categories": [{"id": 0, "name": "water", "color": [0, 0, 255]}, ...],
         "images": [{"id": 1, "file_name": "a.jpg", "sem_seg_file_name": "a.png", "height": 480, "width": 640}, ...],
         "ignore_label": 255}

    ``color`` and ``ignore_label`` (255) are optional. The ids are the pixel values, hence 0, 1, ..., K - 1.

    Args:
        dataset_name: if given, its metadata gets ``stuff_classes``, ``stuff_colors`` and ``ignore_label``.
        allow_outside: whether file names may lead out of these folders, as for :func:`load_coco_json`.

    Returns:
        One dict per image: ``file_name``, ``sem_seg_file_name``, ``height``, ``width`` and ``image_id``.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged, or an entry of it is.
    """
    content = _read(json_file)
    if dataset_name is not None:
        _set_metadata(content, dataset_name, json_file)
    images = Folder(image_root, json_file, allow_outside)
    label_maps = Folder(sem_seg_root, json_file, allow_outside, argument="sem_seg_root")
    return [
        {
            "file_name": images.join(image["file_name"], f"image {image['id']!r}"),
            "sem_seg_file_name": label_maps.join(image["sem_seg_file_name"], f"image {image['id']!r}"),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
        }
        for image in content["images"]
    ]


def _read(json_file: str) -> dict[str, Any]:
    content = read_json(json_file)
    for key in ("images", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f"{json_file}: expected an object with the lists 'images' and 'categories'")
        check_entries(content[key], frozenset({"id", "name"} if key == "categories" else IMAGE_KEYS), key, json_file)
    return content


def _set_metadata(content: dict[str, Any], dataset_name: str, json_file: str) -> None:
    check_one_kind_of_ids(content["categories"], "category", json_file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    ids = [category["id"] for category in categories]
    if ids != list(range(len(ids))):
        raise DatasetError(
            f"{json_file} has categories with the ids {ids}; ids are pixel values of the label maps, hence 0 to "
            f"{len(ids) - 1}. Number the classes anew, in the file and in the maps"
        )
    names = [category["name"] for category in categories]
    colors = [category.get("color", color) for category, color in zip(categories, _colors(names), strict=True)]
    ignore_label = content.get("ignore_label", 255)
    if type(ignore_label) is not int:
        raise DatasetError(f"{json_file} has the ignore_label {short(ignore_label)}; expected a whole number")
    check_colors(categories, json_file)
    MetadataCatalog.get(dataset_name).set(stuff_classes=names, stuff_colors=colors, ignore_label=ignore_label)


def _colors(classes: Sequence[str]) -> list[list[int]]:
    return [c["color"] for c in categories_with_colors([(i, name, False) for i, name in enumerate(classes)])]


def _ending(folder: str) -> str:
    """The ending of the images in a folder; "jpg" if there are none, for the error to come."""
    if not PathManager.isdir(folder):
        return "jpg"
    found = {name.rpartition(".")[2] for name in PathManager.ls(folder) if "." in name}
    endings = sorted(ending for ending in found if ending.lower() in IMAGE_ENDINGS)
    if len(endings) > 1:
        raise DatasetError(f"{folder} has images that end in {', '.join(endings)}; convert them to one format")
    return endings[0] if endings else "jpg"
