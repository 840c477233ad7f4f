"""From the config to the nodes of a module graph and their modules."""

import os
import traceback

import torch
from torch import nn

from detlib.config import CfgNode
from detlib.modeling.meta_arch.graph.config import NodeConfig, read_nodes, suggestion
from detlib.modeling.meta_arch.graph.construct import BuildContext, Shapes, overlaid
from detlib.modeling.meta_arch.graph.parts import part_of
from detlib.modeling.meta_arch.graph.wires import Node, check_wires, join_features
from detlib.utils.errors import (
    ConfigAssertionError,
    ConfigError,
    ConfigKeyError,
    ConfigRuntimeError,
    ConfigTypeError,
    CustomImportError,
    DetlibError,
)

__all__ = ["build_nodes"]

# What an error of a part becomes, so that it can still be caught as what it was.
_KINDS: dict[type[Exception], type[ConfigError]] = {
    KeyError: ConfigKeyError,
    TypeError: ConfigTypeError,
    AssertionError: ConfigAssertionError,
    RuntimeError: ConfigRuntimeError,
    ImportError: CustomImportError,
}


def build_nodes(cfg: CfgNode) -> tuple[list[Node], nn.ModuleDict]:
    """The nodes of the config and their modules.

    Raises:
        ConfigError: a node cannot be built, or its wires do not fit; it is named, with the line of the config.
    """
    cfg = cfg.clone()
    cfg.freeze()
    plan: list[Node] = []
    modules = nn.ModuleDict()
    for config in read_nodes(cfg):
        node, module = _build_node(config, cfg, _input_shape(config, plan))
        check_wires(node, plan, cfg.MODEL.MODULE_GRAPH.INPUTS)
        plan.append(node)
        modules[node.name] = module
    return plan, modules


def _input_shape(config: NodeConfig, plan: list[Node]) -> Shapes:
    """The shapes of the maps that a node names as its inputs, else of those of its ``prev``."""
    maps = {node.map_name(feature): shape for node in plan for feature, shape in node.shape.items()}
    shapes = {node.name: node.shape for node in plan}
    named = {name: maps[name] for name in config.inputs or () if name in maps}
    return named or join_features({name: shapes[name] for name in config.prev})


def _build_node(config: NodeConfig, cfg: CfgNode, input_shape: Shapes) -> tuple[Node, nn.Module]:
    part = part_of(config)
    try:
        module = part.build(BuildContext(config, overlaid(cfg, "", config.cfg_changes, config), input_shape))
        if not isinstance(module, nn.Module):
            raise ConfigTypeError(f"{config.type} gave a {type(module).__name__}; it must give a torch.nn.Module")
        shape = part.output_shape(module, input_shape)
        _check_taps(config, module)
        return Node(config, part, shape, part.wires(module, config), part.padding(module, input_shape)), module
    except Exception as error:  # Constructors of users can fail in any way.
        raise _in_node(error, config) from error


def _check_taps(config: NodeConfig, module: nn.Module) -> None:
    known = dict(module.named_modules())
    for tap in config.taps:
        if tap not in known:
            names = ", ".join(list(known)[1:20]) or "none"
            raise ConfigError(f"tap is {tap!r}; {suggestion(tap, known)}The modules in the node are {names}")


def _in_node(error: Exception, config: NodeConfig) -> ConfigError:
    """The error with the name of the node in front, which can still be caught as what it was."""
    text = str(error)
    if not isinstance(error, DetlibError):
        text = f"{config.type}: {type(error).__name__}: {error}{_raised_at(error)}"
    kind = next((kind for base, kind in _KINDS.items() if isinstance(error, base)), ConfigError)
    return kind(f"{config}: {text}")


def _raised_at(error: Exception) -> str:
    """Where the code of a part has failed, as tools print errors without a traceback."""
    torch_folder = os.path.join(os.path.dirname(torch.__file__), "")
    frames = [x for x in traceback.extract_tb(error.__traceback__) if not x.filename.startswith(torch_folder)]
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
