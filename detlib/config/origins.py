"""Where each value of a config was set: a "file:line", the command line, code, or the defaults."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from detlib.config.values import to_yaml

__all__ = [
    "CODE",
    "COMMAND_LINE",
    "DEFAULT",
    "added_by_code",
    "format_with_origins",
    "place_of",
    "places",
    "places_within",
    "put_places",
]

COMMAND_LINE = "command line"
CODE = "code"
DEFAULT = "default"

_COMMENT_COLUMN = 60


def places(mapping: Mapping[str, Any]) -> dict[str, str]:
    """Origins of the keys of a `CfgNode` or of a mapping read from a file; to be changed in place."""
    return getattr(mapping, "__dict__", {}).get("_places", {})


def put_places(section: Mapping[str, Any], key: str, value: Any, place: str) -> None:
    """Note where a value of a section is from and, if it is a list, the mappings in it: as `key.<number>.<key>`."""
    known = places(section)
    for old in places_within(section, key):
        del known[old]
    known[key] = place
    known.update(_inner_places(key, value))


def _inner_places(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, place in places(value).items():
            if name in value:
                yield f"{key}.{name}", place
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in items:
        yield from _inner_places(f"{key}.{name}", part)


def places_within(section: Mapping[str, Any], key: str) -> dict[str, str]:
    """Origins of what is in a list, by `key.<number>.<key>`."""
    return {name: place for name, place in places(section).items() if name.startswith(f"{key}.")}


def place_of(section: Mapping[str, Any], key: str, *path: str | int) -> str:
    """Where a part of a value is from; a mapping, where the first of its keys is from."""
    value = section.get(key)
    if path and isinstance(value, Mapping):
        return place_of(value, str(path[0]), *path[1:])
    for end in range(len(path), -1, -1):
        name = ".".join((key, *map(str, path[:end])))
        found = places(section).get(name) or next(iter(places_within(section, name).values()), "")
        if found:
            return found
    return next(iter(places(value).values()), DEFAULT)


def added_by_code(section: Mapping[str, Any]) -> set[str]:
    """Keys of a section for a part that code has set, as projects do to add options."""
    return getattr(section, "__dict__", {}).get("_added", set())


def format_with_origins(cfg: Mapping[str, Any]) -> str:
    """Write a config as YAML, with a comment after each value that says where it was set."""
    return "\n".join(_lines(cfg, indent=0))


def _lines(section: Mapping[str, Any], indent: int) -> Iterator[str]:
    for key, value in sorted(section.items(), key=lambda item: str(item[0])):
        head = f"{' ' * indent}{key}:"
        if isinstance(value, Mapping) and value:
            yield head
            yield from _lines(value, indent + 2)
        else:
            line = f"{head} {_one_line(value)}"
            yield f"{line:<{_COMMENT_COLUMN}}  # {places(section).get(key, DEFAULT)}"


def _one_line(value: Any) -> str:
    text = yaml.safe_dump(to_yaml(value), default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
