"""How one tree of options is laid over another: sections join, other values are replaced.

`_DELETE_: true` in a section drops what the section had before. A mapping with whole numbers as keys, laid over a list,
changes the items of these numbers only.
"""

from collections.abc import Mapping
from typing import Any

from detlib.config.origins import CODE, places
from detlib.config.safe_yaml import LocatedDict
from detlib.config.values import decode, lists_mappings
from detlib.utils.errors import ConfigError, ConfigKeyError

__all__ = ["DELETE", "deletes", "is_items", "overlay", "refuse_markers", "set_items", "take_delete_markers"]

DELETE = "_DELETE_"


def deletes(tree: Mapping[str, Any]) -> bool:
    """Whether a section drops what was there before: a tree from a file knows, a plain dict has the marker as a key.

    Raises:
        ConfigError: The marker is not true or false.
    """
    marker = tree.get(DELETE, False)
    if not isinstance(marker, bool):
        raise ConfigError(f"{places(tree).get(DELETE, CODE)}: {DELETE} must be true or false, got {marker!r}")
    return getattr(tree, "deletes", False) or marker


def take_delete_markers(tree: LocatedDict) -> LocatedDict:
    """Turn the markers of a tree that was just read into attributes of its sections, so that none can stay behind.

    Raises:
        ConfigError: A marker is not true or false, is within a list, or has small letters.
    """
    tree.deletes = deletes(tree)
    tree.pop(DELETE, None)
    places(tree).pop(DELETE, None)
    for name, value in tree.items():
        if str(name).upper() == DELETE:
            raise ConfigError(f"{places(tree)[name]}: write {DELETE} for {name}")
        if isinstance(value, LocatedDict):
            take_delete_markers(value)
        else:
            refuse_markers(value, places(tree).get(name, ""))
    return tree


def refuse_markers(value: Any, place: str) -> None:
    """Raise a ConfigError if a list has a marker in it."""
    if isinstance(value, Mapping) and DELETE in value:
        raise ConfigError(
            f"{place}: {DELETE} cannot be used within a list; write the whole list, which replaces the old"
        )
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            refuse_markers(part, place)


def overlay(base: LocatedDict, tree: LocatedDict, prefix: str = "") -> LocatedDict:
    """Join two trees read from files, the second of which wins.

    Args:
        prefix: Name of the section and a dot, for errors.
    """
    if tree.deletes:
        return tree
    result = LocatedDict()
    result.deletes = base.deletes
    result.update(base)
    places(result).update(places(base))
    for name, value in tree.items():
        place = places(tree)[name]
        if isinstance(value, LocatedDict) and name in base:
            value = _overlay_value(base[name], value, f"{prefix}{name}", place, places(base)[name])
        result[name] = value
        places(result)[name] = place
    return result


def _overlay_value(base: Any, tree: LocatedDict, name: str, place: str, base_place: str) -> Any:
    if isinstance(base, LocatedDict):
        return overlay(base, tree, f"{name}.")
    items = decode(base, None)  # Tuples are written as text.
    if isinstance(items, list | tuple) and is_items(tree):
        return set_items(items, tree, name, place)
    if tree.deletes or lists_mappings(name):
        return tree
    raise ConfigError(f"{place}: {name} is a section here but a value at {base_place}")


def is_items(tree: Mapping[Any, Any]) -> bool:
    """Whether all keys are numbers of list items."""
    return bool(tree) and all(type(key) is int or (isinstance(key, str) and key.isdecimal()) for key in tree)


def set_items(items: list | tuple, changes: Mapping[Any, Any], key: str, place: str) -> list | tuple:
    """Copy a list with some items changed; an item that is a mapping is joined with one that comes for it.

    Raises:
        ConfigKeyError: The list has no such item.
        ConfigError: The list itself is to be dropped.
    """
    if deletes(changes):
        raise ConfigError(f"{place}: {key} is a list, which {DELETE} cannot drop; write the whole list")
    result = list(items)
    for index, change in changes.items():
        if not 0 <= int(index) < len(result):
            raise ConfigKeyError(f"{place}: {key} has {len(result)} items, numbered from 0; there is no {index} to set")
        current = result[int(index)]
        joins = isinstance(change, Mapping) and isinstance(current, Mapping) and not deletes(change)
        result[int(index)] = _joined(current, change) if joins else change
    return type(items)(result)


def _joined(current: Mapping[str, Any], change: Mapping[str, Any]) -> LocatedDict:
    result = LocatedDict()
    result.update(current)
    places(result).update({**places(current), **places(change)})
    for name, value in change.items():
        joins = isinstance(value, Mapping) and isinstance(result.get(name), Mapping) and not deletes(value)
        result[name] = _joined(result[name], value) if joins else value
    return result
