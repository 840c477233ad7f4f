"""From a node of a module graph to its module: the arguments that the config gives, and those that nobody needs to."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from detlib.config import CfgNode
from detlib.config.component import fit_arguments, takes
from detlib.config.origins import places
from detlib.config.safe_yaml import LocatedDict
from detlib.layers import ShapeSpec
from detlib.modeling.meta_arch.graph.config import NodeConfig
from detlib.utils.errors import ConfigError, ConfigTypeError

__all__ = ["BuildContext", "Shapes", "as_list", "construct", "in_eval_mode", "overlaid", "tried_shape"]

TRIED_SIZE = 8
CHANNELS = ("in_planes", "inplanes", "in_channels")

Shapes = dict[str, ShapeSpec]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildContext:
    """What a node is built from.

    Attributes:
        cfg: the config, with the ``options`` of the node.
        input_shape: of the features that it takes.
    """

    node: NodeConfig
    cfg: CfgNode
    input_shape: Shapes


def construct(target: Callable[..., nn.Module], context: BuildContext, **offers: Any) -> nn.Module:
    """Call a constructor with the ``kwargs`` of a node and what it takes of the shapes and the config.

    Raises:
        ConfigTypeError: the arguments do not fit.
        ConfigError: it needs channels, and there is nothing to tell them.
    """
    node, shapes = context.node, list(context.input_shape.values())
    if not callable(target):
        raise ConfigTypeError(f"{node.type} is a {type(target).__name__}, rather than a class or a function")
    if shapes:
        channels, strides = [shape.channels for shape in shapes], [shape.stride for shape in shapes]
        one = len(shapes) == 1
        offers = {
            "input_shape": context.input_shape,
            **dict.fromkeys(CHANNELS, channels[0] if one else channels),
            "in_strides": strides[0] if one else strides,
            **offers,
        }
    arguments = {key.lower() if key.isupper() else key: value for key, value in node.kwargs.items()}
    _check_channels(target, arguments, offers, node)
    name = getattr(target, "__name__", type(target).__name__)
    try:
        fitted = fit_arguments(target, arguments, {"cfg": context.cfg, "node_name": node.name, **offers}, spell=str)
    except ConfigTypeError as error:
        problem = str(error).rstrip(".")
        raise ConfigTypeError(f"{name}{inspect.signature(target)} {problem}; kwargs are {node.kwargs}") from None
    try:
        return target(**fitted)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in fitted.items() if key not in ("cfg", "input_shape"))
        maps = f", as prev gives {', '.join(context.input_shape)}" if len(shapes) > 1 else ""
        raise ConfigTypeError(
            f"{name}{inspect.signature(target)} was called with {given or 'nothing'}{maps}: {error}"
        ) from error


def _check_channels(
    target: Callable[..., Any], arguments: Mapping[str, Any], offers: Mapping[str, Any], node: NodeConfig
) -> None:
    """Of a module that takes channels: someone must tell them, and two who do should agree."""
    parameters = takes(target)
    for name in (*CHANNELS, "in_strides", "input_shape"):
        parameter = parameters.get(name)
        if parameter is None:
            continue
        if name in arguments and name in offers and arguments[name] != offers[name]:
            _logger.warning(f"{node} has {name} {arguments[name]}, but prev gives {offers[name]}; the former is used")
        if parameter.default is parameter.empty and name not in arguments and name not in offers:
            needs = f"{getattr(target, '__name__', target)} needs {name}"
            if not node.prev:
                raise ConfigError(f"{needs}; the node needs prev or an explicit {name}")
            raise ConfigError(
                f"{needs}, but prev {', '.join(node.prev)} declares no outputs, by output_shape() or get_outplanes(); "
                f"take another prev or an explicit {name}"
            )


@torch.no_grad()
def tried_shape(neck: nn.Module, input_shape: Shapes) -> Shapes:
    """The shapes of what a neck makes of black maps, as it has no ``output_shape()``; if it fails, those of its input.

    Strides are unknown unless all those of the input are known.
    """
    strides = [shape.stride for shape in input_shape.values()]
    size = 2 * max(strides) if all(strides) else 0  # Of the image.
    sides = {name: size // shape.stride if size else TRIED_SIZE for name, shape in input_shape.items()}
    try:
        with in_eval_mode(neck):
            maps = neck({name: torch.zeros(1, x.channels, sides[name], sides[name]) for name, x in input_shape.items()})
        maps = maps if isinstance(maps, Mapping) else {f"f{i}": x for i, x in enumerate(as_list(maps))}
        return {
            name: ShapeSpec(channels=x.shape[1], stride=size // x.shape[-1] if size and x.dim() == 4 else None)
            for name, x in maps.items()
        }
    except Exception:  # Modules of users can fail in any way, and will say how when they run.
        return {name: ShapeSpec(channels=shape.channels) for name, shape in input_shape.items()}


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """A block in which a module is in eval mode, whatever mode each module in it has before and after."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def as_list(value: Any) -> list[Any]:
    """A list of values, or of the only one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def overlaid(cfg: CfgNode, section: str, values: Mapping[str, Any], node: NodeConfig) -> CfgNode:
    """The config with values in one of its sections, which come from a node."""
    if not values:
        return cfg
    place = f"{'kwargs' if section else 'cfg'} of {node.name}"
    tree = _located(values, place)
    for name in reversed(section.split(".") if section else []):
        tree = _located({name: tree}, place)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_other_cfg(tree)
    cfg.freeze()
    return cfg


def _located(values: Mapping[str, Any], place: str) -> LocatedDict:
    tree = LocatedDict()
    tree.update({key: _located(value, place) if isinstance(value, dict) else value for key, value in values.items()})
    places(tree).update(dict.fromkeys(tree, place))
    return tree
