"""LVIS (https://arxiv.org/abs/1908.03195): datasets in its variant of COCO's format.

The categories, over a thousand, are not copied into this package: every annotation file lists them under
"categories", with name, synonyms, frequency and, for training sets, the number of images. That list is the authority,
is at hand for whoever has the data, and is read when class names or counts are first asked for. It lies in a part of
the file that is found without parsing the rest, which is a gigabyte for the training set of version 1.
"""

import functools
import json
import logging
import mmap
import os
import re
from collections.abc import Sequence
from typing import Any

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.builtin_meta import COCO_CATEGORIES, instance_metadata
from detlib.data.datasets.coco_format import (
    annotation_error,
    check_boxes,
    check_unique,
    parse_instance,
    read_coco_file,
    some,
)
from detlib.data.datasets.coco_values import short
from detlib.data.datasets.files import datasets_root, missing_files_error
from detlib.data.datasets.lazy import set_lazy_metadata
from detlib.data.datasets.paths import Folder
from detlib.utils.errors import DatasetError, MissingFileError, UnknownNameError
from detlib.utils.file_io import PathManager

__all__ = [
    "LVISCategories",
    "get_lvis_instances_meta",
    "load_lvis_json",
    "register_lvis_instances",
    "register_lvis_with_categories_of",
]

logger = logging.getLogger(__name__)

Entry = dict[str, Any]

LAZY_KEYS = ("thing_classes", "thing_dataset_id_to_contiguous_id", "class_image_count")
IMAGE_KEYS = frozenset({"id", "height", "width"})
# All of one version have the same categories; the training file comes first, as only its counts are of training.
VERSION_FILES = {
    "lvis_v1": ("lvis_v1_train.json", "lvis_v1_val.json", "lvis_v1_image_info_test_dev.json"),
    "lvis_v0.5": ("lvis_v0.5_train.json", "lvis_v0.5_val.json", "lvis_v0.5_image_info_test.json"),
}
FIRST_WINDOW = 1 << 20


def register_lvis_instances(
    name: str, metadata: dict[str, Any], json_file: str, image_root: str, allow_outside: bool = False
) -> None:
    """Register a dataset in LVIS's format. No file is read before the dataset or its class names are asked for.

    Args:
        name: name for the config.
        metadata: further metadata, may be ``{}``: what it lacks of ``thing_classes``,
            ``thing_dataset_id_to_contiguous_id`` and ``class_image_count`` comes from ``json_file``.
        json_file: annotations.
        image_root: folder that holds ``train2017`` and the like, as the images' ``coco_url`` names them.
        allow_outside: whether file names may lead out of that folder, as for :func:`load_coco_json`.
    """
    register_lvis_with_categories_of(
        name, metadata, json_file, image_root, [os.fspath(json_file)], allow_outside=allow_outside
    )


def register_lvis_with_categories_of(
    name: str,
    metadata: dict[str, Any],
    json_file: str,
    image_root: str,
    category_files: Sequence[str],
    root: str | None = None,
    allow_outside: bool = False,
) -> None:
    """Register as :func:`register_lvis_instances` does, with categories of the first of several files that exists.

    Args:
        category_files: their counts are used only if the first one exists.
        root: folder of datasets, for the error when none exists; None for own data.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_lvis_json(json_file, image_root, name, allow_outside=allow_outside))
    read = functools.partial(_metadata_of_files, tuple(category_files), f"metadata of dataset {name!r}", root)
    set_lazy_metadata(name, LAZY_KEYS, read).set(
        json_file=json_file, image_root=image_root, allow_outside=allow_outside, evaluator_type="lvis", **metadata
    )


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """Return ``thing_classes``, ``thing_dataset_id_to_contiguous_id`` and ``class_image_count`` of a version of LVIS.

    "Cocofied" datasets have COCO's 80 classes.

    Raises:
        UnknownNameError: the name begins with neither lvis_v1 nor lvis_v0.5.
        MissingFileError: no annotation file of the version is in the folder of datasets.
    """
    if "cocofied" in dataset_name:
        return instance_metadata(COCO_CATEGORIES)
    for version in VERSION_FILES:
        if dataset_name.startswith(version):
            return _metadata_of_files(version_files(version), f"metadata of {version}", datasets_root())
    raise UnknownNameError(
        f"no version of LVIS is named {dataset_name!r}; expected a name that begins with {' or '.join(VERSION_FILES)}"
    )


def version_files(version: str, root: str | None = None) -> tuple[str, ...]:
    """Return the files that list the categories of ``lvis_v1`` or ``lvis_v0.5``."""
    return tuple(os.path.join(root or datasets_root(), "lvis", file) for file in VERSION_FILES[version])


def load_lvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
    allow_outside: bool = False,
) -> list[Entry]:
    """Read annotations in LVIS's format.

    Args:
        json_file: annotations.
        image_root: folder that holds ``train2017`` and the like, as the images' ``coco_url`` names them.
        dataset_name: if given, ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` become metadata of that
            dataset, where it has none.
        extra_annotation_keys: keys of an annotation to carry over to the samples as they are, where present.
        allow_outside: whether file names may lead out of ``image_root``, as for :func:`load_coco_json`.

    Returns:
        One dict per image as :func:`load_coco_json` gives it, and ``not_exhaustive_category_ids`` and
        ``neg_category_ids`` with ids of the file. Category ids of instances are contiguous.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged or an entry of it is.
    """
    content = read_coco_file(json_file, IMAGE_KEYS)
    folder = Folder(image_root, json_file, allow_outside)
    category_ids = _category_ids(content["categories"], dataset_name, json_file)
    check_unique(content["images"], "image", json_file)
    check_unique(content["annotations"], "annotation", json_file)
    check_boxes(content["annotations"], json_file)
    images = sorted(content["images"], key=lambda image: image["id"])
    samples = {image["id"]: sample_of(image, folder) for image in images}
    maskless = []
    for annotation in content["annotations"]:
        if annotation["image_id"] not in samples:
            raise annotation_error(json_file, annotation, "its image is not in 'images'", "add the image")
        if annotation["category_id"] not in category_ids:
            problem = f"its category {short(annotation['category_id'])} is not among the {len(category_ids)} known ones"
            raise annotation_error(json_file, annotation, problem, "add it to 'categories'")
        category_id = category_ids[annotation["category_id"]]
        instance = parse_instance(annotation, category_id, tuple(extra_annotation_keys or ()), json_file)
        if instance is None:
            maskless.append(annotation["id"])
        else:
            samples[annotation["image_id"]]["annotations"].append(instance)
    if maskless:
        logger.warning(
            f"{json_file}: left out {len(maskless)} annotations whose polygons all have fewer than 3 points: "
            f"ids {some(maskless)}"
        )
    num_instances = len(content["annotations"]) - len(maskless)
    logger.info(f"Read {len(samples)} images and {num_instances} annotations from {json_file}")
    return list(samples.values())


def sample_of(image: Entry, folder: Folder) -> Entry:
    """The sample of an entry of "images", still without objects.

    Raises:
        DatasetError: it names no file, or one out of the folder.
    """
    url = image.get("coco_url")
    if isinstance(url, str) and url:
        # As in .../train2017/000000391895.jpg: LVIS splits COCO's images anew, so that a split has several folders.
        file_name = "/".join(url.split("/")[-2:])
    elif image.get("file_name"):
        file_name = image["file_name"]
    else:
        raise DatasetError(f"{folder.source}: image {short(image['id'])} has neither coco_url nor file_name")
    return {
        "file_name": folder.join(file_name, f"image {short(image['id'])}"),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
        "neg_category_ids": image.get("neg_category_ids", []),
        "annotations": [],
    }


def _category_ids(categories: list[Entry], dataset_name: str | None, json_file: str) -> dict[int, int]:
    check_unique(categories, "category", json_file)
    found = _metadata_of(categories)
    if dataset_name is None:
        return found["thing_dataset_id_to_contiguous_id"]
    metadata = MetadataCatalog.get(dataset_name)
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
        known = metadata.get(key)
        if known is None:
            metadata.set(**{key: found[key]})
    if len(metadata.thing_classes) != len(categories):
        raise DatasetError(
            f"dataset {dataset_name!r} has {len(metadata.thing_classes)} thing_classes in its metadata, but "
            f"{json_file} has {len(categories)} categories; is the file of another version?"
        )
    return metadata.thing_dataset_id_to_contiguous_id


def _metadata_of(categories: Sequence[Entry]) -> dict[str, Any]:
    categories = sorted(categories, key=lambda category: category["id"])
    names = [category.get("synonyms") or [category["name"]] for category in categories]
    metadata: dict[str, Any] = {
        "thing_classes": [str(synonyms[0]) if isinstance(synonyms, list) else str(synonyms) for synonyms in names],
        "thing_dataset_id_to_contiguous_id": {category["id"]: index for index, category in enumerate(categories)},
    }
    if all("image_count" in category for category in categories):
        metadata["class_image_count"] = [{key: c[key] for key in ("id", "image_count")} for c in categories]
    return metadata


def _metadata_of_files(files: tuple[str, ...], what: str, root: str | None) -> dict[str, Any]:
    """Names of the first file that exists; counts of the first file of all only, as it holds the training set."""
    path = _first_existing(files, what, root)
    metadata = _metadata_of(read_categories(path))
    if path != files[0]:
        metadata.pop("class_image_count", None)
    return metadata


def _first_existing(files: tuple[str, ...], what: str, root: str | None) -> str:
    for path in files:
        if PathManager.isfile(path):
            return path
    if root is None:
        raise MissingFileError(f"{what} lacks the annotation file {files[0]!r}; check the path, or its download")
    raise missing_files_error(what, root, files[:1], files[:1])


class LVISCategories(Sequence[Entry]):
    """The "categories" of a version of LVIS as a sequence, read from the folder of datasets on first use.

    Args:
        version: ``lvis_v1`` or ``lvis_v0.5``.
        keys: those to keep of each category; by default all.
    """

    def __init__(self, version: str, keys: Sequence[str] | None = None) -> None:
        self._version, self._keys = version, keys

    @property
    def _categories(self) -> list[Entry]:
        files = version_files(self._version)
        # Counts must be of the training set, names may come from any.
        files = files if self._keys is None else files[:1]
        path = _first_existing(files, f"list of categories of {self._version}", datasets_root())
        categories = read_categories(path)
        return categories if self._keys is None else [{key: c[key] for key in self._keys} for c in categories]

    def __getitem__(self, index: Any) -> Any:
        return self._categories[index]

    def __len__(self) -> int:
        return len(self._categories)

    def __repr__(self) -> str:
        return f"LVISCategories({self._version!r})"


def read_categories(json_file: str) -> list[Entry]:
    """Read the "categories" of a JSON file in COCO's format, sorted by id, without parsing the rest of the file."""
    path = PathManager.get_local_path(json_file)
    return _read_categories(path, os.path.getmtime(path))


@functools.lru_cache(maxsize=8)
def _read_categories(path: str, modified: float) -> list[Entry]:
    del modified  # Part of the key of the cache only.
    categories = _decode_categories(path)
    if not isinstance(categories, list) or not all(
        isinstance(c, dict) and {"id", "name"} <= c.keys() for c in categories
    ):
        raise DatasetError(f"{path} has no list of 'categories' with id and name, as LVIS's annotation files have it")
    return sorted(categories, key=lambda category: category["id"])


def _decode_categories(path: str) -> Any:
    if os.path.getsize(path) == 0:
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        key = re.search(rb'"categories"\s*:\s*(?=\[)', content)
        if key is None:
            return None
        start, window = key.end(), FIRST_WINDOW
        while True:
            try:
                text = content[start : start + window].decode("utf-8", errors="ignore")
                return json.JSONDecoder().raw_decode(text)[0]
            except ValueError:
                if start + window >= len(content):
                    return None
                window *= 4
