"""From a node of a module graph to its module: the arguments that the config gives, and those that nobody needs to."""

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from detlib.config import CfgNode
from detlib.config.component import fit_arguments, takes
from detlib.config.origins import places
from detlib.config.safe_yaml import LocatedDict
from detlib.layers import ShapeSpec
from detlib.modeling.meta_arch.graph.config import NodeConfig
from detlib.utils.errors import ConfigError, ConfigTypeError

__all__ = ["Setting", "Shapes", "construct", "overlaid"]

CHANNELS = ("in_planes", "inplanes", "in_channels")

Shapes = dict[str, ShapeSpec]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What a node is built from.

    Attributes:
        cfg: the config, with the ``options`` of the node.
        input_shape: of the features that it takes.
    """

    node: NodeConfig
    cfg: CfgNode
    input_shape: Shapes


def construct(target: Callable[..., nn.Module], setting: Setting, **offers: Any) -> nn.Module:
    """Call a constructor with the ``kwargs`` of a node and what it takes of the shapes and the config.

    Raises:
        ConfigTypeError: the arguments do not fit.
        ConfigError: it needs channels, and there is nothing to tell them.
    """
    node, shapes = setting.node, list(setting.input_shape.values())
    if shapes:
        channels, strides = [shape.channels for shape in shapes], [shape.stride for shape in shapes]
        one = len(shapes) == 1
        offers = {
            "input_shape": setting.input_shape,
            **dict.fromkeys(CHANNELS, channels[0] if one else channels),
            "in_strides": strides[0] if one else strides,
            **offers,
        }
    arguments = {key.lower() if key.isupper() else key: value for key, value in node.kwargs.items()}
    _check_channels(target, arguments, offers, node)
    try:
        fitted = fit_arguments(target, arguments, {"cfg": setting.cfg, "node_name": node.name, **offers}, spell=str)
    except ConfigTypeError as error:
        name, problem = getattr(target, "__name__", target), str(error).rstrip(".")
        raise ConfigTypeError(
            f"{name} {problem}. Its signature is {name}{inspect.signature(target)}; kwargs are {node.kwargs}"
        ) from None
    return target(**fitted)


def _check_channels(
    target: Callable[..., Any], arguments: Mapping[str, Any], offers: Mapping[str, Any], node: NodeConfig
) -> None:
    """Of a module that takes channels: someone must tell them, and two who do should agree."""
    parameters = takes(target)
    for name in (*CHANNELS, "input_shape"):
        parameter = parameters.get(name)
        if parameter is None:
            continue
        if name in arguments and name in offers and arguments[name] != offers[name]:
            _logger.warning(f"{node} has {name} {arguments[name]}, but prev gives {offers[name]}; the former is used")
        if parameter.default is parameter.empty and name not in arguments and name not in offers:
            advice = f"prev {', '.join(node.prev)} declares no outputs" if node.prev else "it needs prev"
            raise ConfigError(f"{getattr(target, '__name__', target)} needs {name}: {advice}, or an explicit {name}")


def overlaid(cfg: CfgNode, section: str, values: Mapping[str, Any], node: NodeConfig) -> CfgNode:
    """The config with values in one of its sections, which come from a node."""
    if not values:
        return cfg
    tree = _located(values, node.place)
    for name in reversed(section.split(".") if section else []):
        tree = _located({name: tree}, node.place)
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
