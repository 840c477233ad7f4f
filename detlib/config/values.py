"""Values of config options: from text, checked against the type of the default, and back to text."""

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any

from yacs.config import CfgNode as _CfgNode

from detlib.config import safe_yaml
from detlib.config.defaults import DEFAULTS, Parts
from detlib.utils.errors import ConfigError, ConfigKeyError

__all__ = ["adapt", "check_type", "decode", "lists_mappings", "override", "plain", "to_yaml"]

_NOT_A_LITERAL = object()

_MAX_BITS = 256  # of a whole number


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _NOT_A_LITERAL


def decode(given: Any, current: Any) -> Any:
    """Turn text into a value for an option that now is `current`; what is not text stays as it is.

    Text may be a Python literal, as config files write tuples and `1e-4`, or else YAML. For an option that is text it
    stays text, unless it is a quoted literal or None.
    """
    if not isinstance(given, str):
        return given
    value = _literal(given)
    if isinstance(current, str):
        return value if isinstance(value, str | None) else given
    if value is not _NOT_A_LITERAL:
        return value
    if current is None:
        return given
    try:
        return plain(safe_yaml.load(given, "a value"))
    except ConfigError:
        return given


def check_type(value: Any, current: Any, key: str, place: str = "") -> Any:
    """Return `value` in the type of `current`.

    An int may stand for a float, lists and tuples for each other, one mapping for a list of them, None for anything.

    Args:
        place: Where the value was set, for the error.

    Raises:
        ConfigError: The types do not fit, or a config cannot hold the value.
    """
    head = f"{place}: {key}" if place else key
    if isinstance(current, _CfgNode) and not isinstance(value, _CfgNode):
        raise ConfigError(f"{head} is a section{_contents(current, value)}; got {_describe(value)}")
    if not _is_plain(value):
        allowed = "numbers, strings, booleans, None, lists, tuples and sections"
        raise ConfigError(f"{head} cannot be {_describe(value)}; a config holds {allowed}")
    if value is None or current is None or type(value) is type(current):
        return value
    if isinstance(value, _CfgNode) and isinstance(current, _CfgNode):
        return value
    if type(value) is int and type(current) is float:
        return float(value)
    if isinstance(value, list | tuple) and isinstance(current, list | tuple):
        return type(current)(value)
    if isinstance(value, Mapping) and isinstance(current, list) and lists_mappings(key):
        return [value]
    raise ConfigError(f"{head} expects {_name_type(current)}, as in {current!r}; got {_describe(value)}")


def lists_mappings(key: str) -> bool:
    """Whether an option is a list of mappings."""
    value: Any = DEFAULTS
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return isinstance(value, Parts)


def adapt(value: Any, current: Any, key: str) -> Any:
    """`check_type` for values set by code, which may be a little off: 640 for (640,), 1e4 for 10000, 1 for True."""
    if isinstance(current, list | tuple) and isinstance(value, str | int | float):
        value = [value]
    elif type(current) is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    elif type(current) is bool and type(value) is int and value in (0, 1):
        value = bool(value)
    return check_type(value, current, key)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    if isinstance(value, int):
        return type(value) in (int, bool) and value.bit_length() <= _MAX_BITS
    return type(value) in (str, float, type(None))


def _name_type(value: Any) -> str:
    return "a section" if isinstance(value, _CfgNode) else type(value).__name__


def _contents(section: _CfgNode, value: Any) -> str:
    if not getattr(section, "__dict__", {}).get("_is_part"):
        return f" with {', '.join(section)}"
    if isinstance(value, str):
        return f" that names a part: write {{NAME: {value}}}"
    return " that names a part, as {NAME: X}; for none write {_DELETE_: true} in a file"


def _describe(value: Any) -> str:
    try:
        return "nothing" if value is None else f"{type(value).__name__} {value!r}"
    except ValueError:  # Python writes no number of thousands of digits.
        return f"{type(value).__name__} with a number of thousands of digits"


def plain(value: Any) -> Any:
    """Copy lists and mappings as built-in types."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(map(plain, value))
    return value


def override(current: Any, path: Sequence[str], given: Any, key: str, place: str) -> Any:
    """Return `current` with the part at `path` (indices of lists, keys of mappings, also new ones) set to what came.

    Args:
        key: The whole key, for errors.

    Raises:
        ConfigKeyError: There is no such part.
        ConfigError: The type does not fit.
    """
    if not path:
        return check_type(decode(given, current), current, key, place)
    part, rest = path[0], path[1:]
    if isinstance(current, list | tuple):
        if not part.isdecimal() or int(part) >= len(current):
            raise ConfigKeyError(f"{place}: {key}: {part!r} is no index of {current!r}, which has {len(current)} items")
        items = list(current)
        items[int(part)] = override(items[int(part)], rest, given, key, place)
        return type(current)(items)
    if isinstance(current, Mapping) and part in current:
        return {**current, part: override(current[part], rest, given, key, place)}
    if isinstance(current, Mapping) and not rest:
        return {**current, part: check_type(decode(given, {}), None, key, place)}
    has = f"it has {', '.join(current)}" if isinstance(current, Mapping) else f"it is {current!r}"
    raise ConfigKeyError(f"{place}: {key}: there is no {part!r} to set; {has}")


def to_yaml(value: Any) -> Any:
    """Write a section or value with what YAML knows, such that `decode` and `check_type` give it back.

    YAML has no tuples: they become Python literals, as config files write them. So does text that looks like one.
    """
    if isinstance(value, Mapping):
        return {key: to_yaml(part) for key, part in value.items()}
    if isinstance(value, str):
        return value if _literal(value) is _NOT_A_LITERAL else repr(value)
    return _python(value) if _has_tuple(value) else plain(value)


def _has_tuple(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_tuple(part) for part in value.values())
    return isinstance(value, tuple) or (isinstance(value, list) and any(_has_tuple(part) for part in value))


def _python(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_python(part)}" for key, part in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_python(part) for part in value) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, list):
        return "[" + ", ".join(_python(part) for part in value) + "]"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # The name inf is no literal.
    return repr(value)
