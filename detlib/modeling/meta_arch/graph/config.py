"""The nodes of a module graph as the config has them, read and checked before anything is built."""

import difflib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from detlib.config import CfgNode
from detlib.config.origins import place_of, places_within
from detlib.config.values import plain
from detlib.utils.errors import ConfigError

__all__ = ["NodeConfig", "read_nodes", "suggestion"]

NET = "MODEL.MODULE_GRAPH.NET"
OVERRIDES = "MODEL.MODULE_GRAPH.OVERRIDES"
_EXAMPLE = "{name: trunk, type: backbone}"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeConfig:
    """One item of MODEL.MODULE_GRAPH.NET.

    Attributes:
        place: "file:line" of the node, for errors.
        kwargs: arguments of the module; for a part that reads the config, keys of its section.
        prev: names of earlier nodes, whose features it takes; none for those that came last.
        tasks: it runs for batches of these tasks only; empty: for all.
        freeze: no gradients, and always in eval mode.
        rename_inputs: entry -> name by which the module knows it.
        rename_outputs: name by which the module knows it -> entry.
        inputs: entries that the module is called with, one after the other; None calls it with the dict.
        outputs: entries for what a module with ``inputs`` returns.
        loss_weights: factor on its losses, or on each by name.
        lr_factor: factor on the learning rate of its parameters.
        weights: a checkpoint of its own.
        taps: names of modules in it whose outputs are drawn; "" is the whole node.
        cfg_changes: changes of the config that it alone sees.
        changes: places in other files, or "command line" or "code", where it was changed.
    """

    name: str
    type: str
    place: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    prev: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    freeze: bool = False
    rename_inputs: dict[str, str] = field(default_factory=dict)
    rename_outputs: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] = ()
    loss_weights: float | dict[str, float] = 1.0
    lr_factor: float = 1.0
    weights: str = ""
    taps: tuple[str, ...] = ()
    cfg_changes: dict[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        changes = f" (changed: {', '.join(self.changes)})" if self.changes else ""
        return f"{self.place}: node {self.name!r}{changes}"


def read_nodes(cfg: CfgNode) -> list[NodeConfig]:
    """The nodes of ``cfg.MODEL.MODULE_GRAPH`` in the order in which they run, with OVERRIDES in their kwargs.

    Raises:
        ConfigError: there are none, or one has a key that nodes do not have, lacks one, has a name that is not free, or
            follows a node that does not come before it.
    """
    graph = cfg.MODEL.MODULE_GRAPH
    if not graph.NET:
        raise ConfigError(f"{place_of(graph, 'NET')}: {NET} is empty; a ModuleGraph needs nodes, as [{_EXAMPLE}]")
    # Copies, as a frozen config does not protect what is in its lists.
    nodes = [_read(plain(item), index, graph) for index, item in enumerate(graph.NET)]
    for index, node in enumerate(nodes):
        _check_twins(node, nodes[:index])
        _check_prev(node, nodes[:index], {other.name: other for other in nodes})
    return _overridden(nodes, graph)


def suggestion(name: str, known: Iterable[str]) -> str:
    """A question that names the closest of the known names, whatever their case, or nothing."""
    names = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean {names[close[0]]!r}? " if close else ""


def _read(item: Any, index: int, graph: CfgNode) -> NodeConfig:
    place = place_of(graph, "NET", index, "name")
    if not isinstance(item, dict):
        raise ConfigError(f"{place}: {NET}[{index}] must be a mapping, as {_EXAMPLE}; got {item!r}")
    if not {"name", "type"} & set(item) and all(isinstance(value, dict) for value in item.values()):
        keys = ", ".join(map(str, item))
        raise ConfigError(f"{place}: {NET} must be a list of nodes, as [{_EXAMPLE}]; this one has only the keys {keys}")
    named = isinstance(item.get("name"), str) and item["name"]
    where = f"node {item['name']!r}" if named else f"{NET}[{index}]"
    if "kwarg" in item:
        if "kwargs" in item:
            raise ConfigError(f"{place}: {where} has both kwargs and kwarg; write kwargs alone")
        _logger.warning(f"{place}: {where}: kwarg is read as kwargs; write kwargs")
        item["kwargs"] = item.pop("kwarg")
    for key in item:
        if key not in _READERS:
            raise ConfigError(
                f"{place_of(graph, 'NET', index, str(key))}: {where} has the unknown key {key!r}; "
                f"{suggestion(str(key), _READERS)}Keys of a node: {', '.join(_READERS)}; arguments of its module go "
                f"into kwargs"
            )
    for key in ("name", "type"):
        if key not in item:
            raise ConfigError(f"{place}: {where} needs a {key}; it has {', '.join(map(str, item)) or 'no key at all'}")
    values: dict[str, Any] = {"place": place}
    for key, value in item.items():
        try:
            values.update(_READERS[key](value))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{place_of(graph, 'NET', index, key)}: {where}: {key} {error}") from None
    node = NodeConfig(**values, changes=_changes(place, places_within(graph, f"NET.{index}").values()))
    if node.outputs and node.inputs is None:
        raise ConfigError(f"{node} has outputs but no inputs; called with the dict, a module names what it gives")
    if node.type.startswith("torch.nn.") and node.inputs is None:
        raise ConfigError(f"{node}: {node.type} takes tensors, not the dict; name them, as inputs: [x], outputs: [y]")
    return node


def _changes(place: str, others: Iterable[str]) -> tuple[str, ...]:
    """One place of each file, and the command line or code, other than that of the first place."""
    sources = {other.rpartition(":")[0] or other: other for other in others}
    sources.pop(place.rpartition(":")[0] or place, None)
    return tuple(sources.values())


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError(f"must be letters, digits and _, as in neck_1, with no digit in front; got {value!r}")
    if hasattr(nn.ModuleDict(), value):
        raise ValueError(f"cannot be {value!r}, which torch modules have as an attribute; take another one")
    return value


def _type(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"must name a module, as custom_net or package.module.Class; got {value!r}")
    return value


def _names(value: Any) -> tuple[str, ...]:
    names = () if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(x, str) and x and "," not in x for x in names):
        raise TypeError(f"must be a name or a list of names, as [a, b]; got {value!r}")
    return tuple(names)


def _mapping(value: Any) -> dict[str, Any]:
    if value is not None and not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        raise TypeError(f"must be a mapping from names; got {value!r}")
    return value or {}


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be true or false; got {value!r}")
    return value


def _factor(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise TypeError(f"must be a number, 0 or more; got {value!r}")
    return float(value)


def _factors(value: Any) -> float | dict[str, float]:
    return {key: _factor(part) for key, part in value.items()} if isinstance(value, dict) else _factor(value)


def _path(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"must be the path of a checkpoint; got {value!r}")
    return value or ""


def _rename(value: Any) -> dict[str, dict[str, str]]:
    maps = _mapping(value)
    known = {"input", "output"} >= set(maps)
    pairs = [pair for part in maps.values() for pair in _mapping(part).items()] if known else []
    if not known or not all(isinstance(name, str) for pair in pairs for name in pair):
        raise TypeError(f"must be as {{input: {{entry: name in the module}}, output: {{...: entry}}}}; got {value!r}")
    return {"rename_inputs": _mapping(maps.get("input")), "rename_outputs": _mapping(maps.get("output"))}


def _taps(value: Any) -> tuple[str, ...]:
    return (("",) if value else ()) if isinstance(value, bool) else _names(value)


def _reader(name: str, read: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: read(value)}


_READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "name": _reader("name", _name),
    "type": _reader("type", _type),
    "prev": _reader("prev", _names),
    "kwargs": _reader("kwargs", _mapping),
    "cfg": _reader("cfg_changes", _mapping),
    "inputs": _reader("inputs", _names),
    "outputs": _reader("outputs", _names),
    "rename": _rename,
    "tasks": _reader("tasks", _names),
    "loss_weights": _reader("loss_weights", _factors),
    "freeze": _reader("freeze", _bool),
    "lr_factor": _reader("lr_factor", _factor),
    "weights": _reader("weights", _path),
    "tap": _reader("taps", _taps),
}


def _check_twins(node: NodeConfig, earlier: Sequence[NodeConfig]) -> None:
    for other in earlier:
        if other.name == node.name:
            raise ConfigError(f"{node} has the name of the node at {other.place}; give it another one")


def _check_prev(node: NodeConfig, earlier: Sequence[NodeConfig], nodes: dict[str, NodeConfig]) -> None:
    names = [other.name for other in earlier]
    for name in node.prev:
        if name in names:
            continue
        if name not in nodes:
            before = ", ".join(names) or "none, as it is the first"
            raise ConfigError(
                f"{node} has prev {name!r}, and there is no such node; {suggestion(name, names)}Before it: {before}"
            )
        circle = _circle(node.name, nodes)
        reason = (
            f"the nodes wait for each other: cycle: {' -> '.join(circle)}" if circle else "nodes run in their order"
        )
        raise ConfigError(f"{node} has prev {name!r}, which must come earlier in the list; {reason}")


def _circle(start: str, nodes: dict[str, NodeConfig]) -> list[str]:
    """The way from a node back to it along ``prev``, or nothing."""
    paths, seen = [[start]], set()
    while paths:
        path = paths.pop()
        for name in nodes[path[-1]].prev:
            if name == start:
                return [*path, name]
            if name in nodes and name not in seen:
                seen.add(name)
                paths.append([*path, name])
    return []


def _overridden(nodes: list[NodeConfig], graph: CfgNode) -> list[NodeConfig]:
    names = [node.name for node in nodes]
    for name, kwargs in graph.OVERRIDES.items():
        place = place_of(graph, "OVERRIDES", name)
        if name not in names:
            known = f"{suggestion(name, names)}The nodes are {', '.join(names)}"
            raise ConfigError(f"{place}: {OVERRIDES} names {name!r}, and there is no such node; {known}")
        if not isinstance(kwargs, dict):
            raise ConfigError(f"{place}: {OVERRIDES}.{name} must be a mapping of arguments; got {kwargs!r}")
        index = names.index(name)
        changes = [place_of(graph, "OVERRIDES", name, key) for key in kwargs]
        nodes[index] = replace(
            nodes[index],
            kwargs=_joined(nodes[index].kwargs, plain(kwargs)),
            changes=_changes(nodes[index].place, [*nodes[index].changes, *changes]),
        )
    return nodes


def _joined(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    joins = {key for key in changes if isinstance(values.get(key), dict) and isinstance(changes[key], dict)}
    return {**values, **{key: _joined(values[key], x) if key in joins else x for key, x in changes.items()}}
