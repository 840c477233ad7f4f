"""Datasets declared in the config, without code::

DATASETS:
  REGISTER:
    - {NAME: cells_train, TYPE: coco, JSON: data/train.json, IMAGES: data/train}
    - {NAME: fields_train, TYPE: sem_seg, JSON: data/train.json, IMAGES: data/images, LABELS: data/masks}
    - {NAME: roads_train, TYPE: sem_seg_folders, IMAGES: data/train, LABELS: data/train_masks, CLASSES: [road, other]}
    - {NAME: tissue_train, TYPE: coco_panoptic, JSON: data/panoptic.json, IMAGES: data/images, PANOPTIC: data/panoptic,
       INSTANCES: data/instances.json}
"""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from detlib.config import CfgNode
from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.coco import register_coco_instances
from detlib.data.datasets.lazy import prepare_before_loading
from detlib.data.datasets.panoptic_instances import register_panoptic_with_instances
from detlib.data.datasets.sem_seg import register_sem_seg, register_sem_seg_folders
from detlib.utils.errors import ConfigError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["register_datasets"]


@dataclass(frozen=True)
class _DatasetType:
    path_keys: tuple[str, ...]
    register: Callable[..., None]  # Takes the name, the paths in the order of their keys, and the values by theirs.
    value_keys: tuple[str, ...] = ()
    optional_keys: tuple[str, ...] = ()  # Values, too.

    @property
    def keys(self) -> tuple[str, ...]:
        return ("NAME", "TYPE", *self.path_keys, *self.value_keys, *self.optional_keys)


TYPES = {
    "coco": _DatasetType(
        ("JSON", "IMAGES"), lambda name, json, images: register_coco_instances(name, {}, json, images)
    ),
    "sem_seg": _DatasetType(("JSON", "IMAGES", "LABELS"), register_sem_seg),
    "sem_seg_folders": _DatasetType(
        ("IMAGES", "LABELS"),
        lambda name, images, labels, CLASSES, IGNORE_LABEL=255: register_sem_seg_folders(
            name, images, labels, CLASSES, IGNORE_LABEL
        ),
        value_keys=("CLASSES",),
        optional_keys=("IGNORE_LABEL",),
    ),
    "coco_panoptic": _DatasetType(("JSON", "IMAGES", "PANOPTIC", "INSTANCES"), register_panoptic_with_instances),
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
    paths = {key: _expand(entry[key]) for key in dataset_type.path_keys}
    values = {key: entry[key] for key in (*dataset_type.value_keys, *dataset_type.optional_keys) if key in entry}
    declaration = {"TYPE": type_name, **paths, **values}
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("declaration") == declaration:
            return
        raise ConfigError(f"{where}.NAME: {name!r} is already the name of other data; choose another one")
    dataset_type.register(name, *paths.values(), **values)
    MetadataCatalog.get(name).set(declaration=declaration)
    prepare_before_loading(name, lambda: _check_paths(name, paths, where))


def _check_keys(entry: Mapping[str, Any], dataset_type: _DatasetType, where: str) -> None:
    for key in entry:
        if key not in dataset_type.keys:
            raise ConfigError(f"{where} has the unknown key {key!r}; {_suggest(key, dataset_type.keys)}")
    needed = ("NAME", "TYPE", *dataset_type.path_keys, *dataset_type.value_keys)
    for key in needed:
        if key not in entry:
            raise ConfigError(f"{where} lacks {key}; a dataset of TYPE {entry['TYPE']} needs {', '.join(needed)}")
    for key in ("NAME", *dataset_type.path_keys):
        if not isinstance(entry[key], str) or not entry[key]:
            raise ConfigError(f"{where}.{key} is {entry[key]!r}; expected a string that is not empty")
    classes, ignore_label = entry.get("CLASSES", ["any"]), entry.get("IGNORE_LABEL", 255)
    if not isinstance(classes, list | tuple) or not classes or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"{where}.CLASSES is {classes!r}; expected the names of pixel values 0, 1, ... in a list")
    if not isinstance(ignore_label, int):
        raise ConfigError(f"{where}.IGNORE_LABEL is {ignore_label!r}; expected the pixel value that does not count")


def _suggest(given: Any, known: Mapping[str, Any] | tuple[str, ...]) -> str:
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
