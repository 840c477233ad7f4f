"""Datasets declared in the config, without code::

DATASETS:
  REGISTER:
    - {NAME: cells_train, TYPE: coco, JSON: data/train.json, IMAGES: data/train}
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
from detlib.utils.errors import ConfigError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["register_datasets"]


@dataclass(frozen=True)
class _DatasetType:
    path_keys: tuple[str, ...]
    register: Callable[..., None]  # Takes the name, then the paths in the order of the keys.


TYPES = {
    "coco": _DatasetType(("JSON", "IMAGES"), lambda name, json, images: register_coco_instances(name, {}, json, images))
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
    _check_keys(entry, ("NAME", "TYPE", *dataset_type.path_keys), where)
    name = entry["NAME"]
    paths = {key: _expand(entry[key]) for key in dataset_type.path_keys}
    declaration = {"TYPE": type_name, **paths}
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("declaration") == declaration:
            return
        raise ConfigError(f"{where}.NAME: {name!r} is already the name of other data; choose another one")
    dataset_type.register(name, *paths.values())
    MetadataCatalog.get(name).set(declaration=declaration)
    prepare_before_loading(name, lambda: _check_paths(name, paths, where))


def _check_keys(entry: Mapping[str, Any], expected: tuple[str, ...], where: str) -> None:
    for key in entry:
        if key not in expected:
            raise ConfigError(f"{where} has the unknown key {key!r}; {_suggest(key, expected)}")
    for key in expected:
        if key not in entry:
            raise ConfigError(f"{where} lacks {key}; a dataset of TYPE {entry['TYPE']} needs {', '.join(expected)}")
        if not isinstance(entry[key], str) or not entry[key]:
            raise ConfigError(f"{where}.{key} is {entry[key]!r}; expected a string that is not empty")


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
