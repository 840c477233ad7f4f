"""Datasets declared in the config, without code::

DATASETS:
  REGISTER:
    - {NAME: cells_train, TYPE: coco, JSON: data/train.json, IMAGES: data/train}
    - {NAME: fields_train, TYPE: sem_seg, JSON: data/train.json, IMAGES: data/images, LABELS: data/masks}
    - {NAME: roads_train, TYPE: sem_seg_folders, IMAGES: data/train, LABELS: data/train_masks, CLASSES: [road, other]}
    - {NAME: tissue_train, TYPE: coco_panoptic, JSON: data/panoptic.json, IMAGES: data/images, PANOPTIC: data/panoptic,
       INSTANCES: data/instances.json}
    - {NAME: birds_train, TYPE: pascal_voc, ROOT: data/birds, SPLIT: train, CLASSES: [wren, robin]}
    - {NAME: birds_tags_train, TYPE: voc_multi_label, ROOT: data/birds, SPLIT: train, CLASSES: [wren, robin]}
    - {NAME: photos, TYPE: images, IMAGES: data/photos}
    - {NAME: leaves_train, TYPE: image_folder, IMAGES: data/leaves}
    - {NAME: leaves_test, TYPE: image_folder, IMAGES: data/leaves, ANNOTATIONS: data/test.txt, CLASSES: [elm, oak]}
    - {NAME: cifar_train, TYPE: cifar10, ROOT: data, SPLIT: train}

Files that JSON or ANNOTATIONS name must lie below the folders that are given, unless the entry has ALLOW_OUTSIDE: true.

Any of them can have a TASK, such as ``TASK: det``: its samples then have that "task", batches are of one task each, and
of a ModuleGraph only the nodes for it run.
"""

import difflib
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from detlib.config import CfgNode
from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.cifar import CIFAR10, CIFAR100, register_cifar
from detlib.data.datasets.coco import register_coco_instances
from detlib.data.datasets.image_folder import register_image_folder, register_images
from detlib.data.datasets.lazy import prepare_before_loading
from detlib.data.datasets.panoptic_instances import register_panoptic_with_instances
from detlib.data.datasets.pascal_voc import register_pascal_voc, register_voc_multi_label
from detlib.data.datasets.sem_seg import register_sem_seg, register_sem_seg_folders
from detlib.utils.errors import ConfigError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["register_datasets"]


@dataclass(frozen=True)
class _Kind:
    """What values of a key must be like."""

    fits: Callable[[Any], bool]
    expected: str
    is_path: bool = False  # Then it is expanded ...
    must_exist: bool = False  # ... and looked for before the dataset is loaded.


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(name, str) for name in value)


_TEXT = _Kind(_is_text, "a string that is not empty")
_PATH = _Kind(_is_text, "a string that is not empty", is_path=True, must_exist=True)
_FOLDER_TO_FILL = _Kind(_is_text, "a string that is not empty", is_path=True)  # Loading says what is to be put there.
_NAMES = _Kind(_are_names, "the names of the classes 0, 1, ... in a list")
_FLAG = _Kind(lambda value: isinstance(value, bool), "true or false")
_NUMBER = _Kind(lambda value: type(value) is int, "a whole number")
_TRAIN_OR_TEST = _Kind(("train", "test").__contains__, "'train' or 'test'")


@dataclass(frozen=True)
class _Key:
    argument: str  # Of the function that registers.
    kind: _Kind = _PATH
    optional: bool = False


@dataclass(frozen=True)
class _DatasetType:
    register: Callable[..., None]  # Takes the name, and the arguments that the keys give.
    own_keys: Mapping[str, _Key]

    @property
    def keys(self) -> dict[str, _Key]:
        common = {"NAME": _Key("name", _TEXT), "TYPE": _Key("type", _TEXT), "TASK": _Key("task", _TEXT, optional=True)}
        return {**common, **self.own_keys}


_OUTSIDE = {"ALLOW_OUTSIDE": _Key("allow_outside", _FLAG, optional=True)}
_VOC_KEYS = {
    "ROOT": _Key("dirname"),
    "SPLIT": _Key("split", _TEXT),
    "CLASSES": _Key("class_names", _NAMES, optional=True),
}
_CIFAR_KEYS = {"ROOT": _Key("root", _FOLDER_TO_FILL), "SPLIT": _Key("split", _TRAIN_OR_TEST)}

TYPES = {
    "coco": _DatasetType(
        functools.partial(register_coco_instances, metadata={}),
        {"JSON": _Key("json_file"), "IMAGES": _Key("image_root"), **_OUTSIDE},
    ),
    "sem_seg": _DatasetType(
        register_sem_seg,
        {"JSON": _Key("json_file"), "IMAGES": _Key("image_root"), "LABELS": _Key("sem_seg_root"), **_OUTSIDE},
    ),
    "sem_seg_folders": _DatasetType(
        register_sem_seg_folders,
        {
            "IMAGES": _Key("image_root"),
            "LABELS": _Key("sem_seg_root"),
            "CLASSES": _Key("classes", _NAMES),
            "IGNORE_LABEL": _Key("ignore_label", _NUMBER, optional=True),
        },
    ),
    "coco_panoptic": _DatasetType(
        register_panoptic_with_instances,
        {
            "JSON": _Key("panoptic_json"),
            "IMAGES": _Key("image_root"),
            "PANOPTIC": _Key("panoptic_root"),
            "INSTANCES": _Key("instances_json"),
            **_OUTSIDE,
        },
    ),
    "pascal_voc": _DatasetType(
        # From 2010 on, the area under the curve is what counts.
        functools.partial(register_pascal_voc, year=2012),
        {**_VOC_KEYS, "YEAR": _Key("year", _NUMBER, optional=True)},
    ),
    "voc_multi_label": _DatasetType(register_voc_multi_label, _VOC_KEYS),
    "image_folder": _DatasetType(
        register_image_folder,
        {
            "IMAGES": _Key("image_root"),
            "ANNOTATIONS": _Key("list_file", optional=True),
            "CLASSES": _Key("classes", _NAMES, optional=True),
            **_OUTSIDE,
        },
    ),
    "images": _DatasetType(register_images, {"IMAGES": _Key("image_root")}),
    "cifar10": _DatasetType(functools.partial(register_cifar, version=CIFAR10), _CIFAR_KEYS),
    "cifar100": _DatasetType(functools.partial(register_cifar, version=CIFAR100), _CIFAR_KEYS),
}


def register_datasets(cfg: CfgNode) -> None:
    """Register all of ``cfg.DATASETS.REGISTER``.

    ``~`` and environment variables in paths are expanded, and relative paths start at the current directory. Files
    are looked for only when a dataset is loaded, so that a trained model's config works where its data is not.
    Declaring the same again changes nothing.

    Raises:
        ConfigError: a declaration has an unknown or missing key or type, or its name is taken by other data.
    """
    for index, entry in enumerate(cfg.DATASETS.REGISTER):
        _register(entry, f"DATASETS.REGISTER[{index}]")


def _register(entry: Any, where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} is {entry!r}; expected {{NAME: ..., TYPE: coco, JSON: ..., IMAGES: ...}}")
    type_name = entry.get("TYPE")
    if type_name not in TYPES:
        raise ConfigError(f"{where}.TYPE is {type_name!r}; {_suggest(type_name, TYPES)}")
    dataset_type = TYPES[type_name]
    _check_keys(entry, dataset_type, where)
    name = entry["NAME"]
    keys = {key: description for key, description in dataset_type.own_keys.items() if key in entry}
    values = {key: _expand(entry[key]) if keys[key].kind.is_path else entry[key] for key in keys}
    declaration = {"TYPE": type_name, "TASK": entry.get("TASK"), **values}
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("declaration") == declaration:
            return
        raise ConfigError(f"{where}.NAME: {name!r} is already the name of other data; choose another one")
    dataset_type.register(name, **{keys[key].argument: value for key, value in values.items()})
    MetadataCatalog.get(name).set(declaration=declaration)
    if "TASK" in entry:
        MetadataCatalog.get(name).set(task=entry["TASK"])
    paths = {key: value for key, value in values.items() if keys[key].kind.must_exist}
    prepare_before_loading(name, lambda: _check_paths(name, paths, where))


def _check_keys(entry: Mapping[str, Any], dataset_type: _DatasetType, where: str) -> None:
    keys = dataset_type.keys
    for key in entry:
        if key not in keys:
            raise ConfigError(f"{where} has the unknown key {key!r}; {_suggest(key, keys)}")
    needed = [key for key in keys if not keys[key].optional]
    for key in needed:
        if key not in entry:
            raise ConfigError(f"{where} lacks {key}; a dataset of TYPE {entry['TYPE']} needs {', '.join(needed)}")
    for key, value in entry.items():
        if not keys[key].kind.fits(value):
            raise ConfigError(f"{where}.{key} is {value!r}; expected {keys[key].kind.expected}")


def _suggest(given: Any, known: Mapping[str, Any]) -> str:
    by_upper = {name.upper(): name for name in known}
    close = difflib.get_close_matches(str(given).upper(), by_upper, n=1)
    hint = f"did you mean {by_upper[close[0]]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."


def _expand(path: str) -> str:
    path = os.path.expanduser(os.path.expandvars(path))
    return path if "://" in path else os.path.abspath(path)


def _check_paths(name: str, paths: dict[str, str], where: str) -> None:
    for key, path in paths.items():
        if not PathManager.exists(path):
            raise MissingFileError(
                f"dataset {name!r}: {where}.{key} is {path!r}, which does not exist; correct the path (relative ones "
                f"start at the current directory, {os.getcwd()!r})"
            )
