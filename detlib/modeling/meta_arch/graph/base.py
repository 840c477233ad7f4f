"""What every kind of node has: how its module is built, what it takes and gives, and how it is called."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from detlib.config import CfgNode
from detlib.layers import ShapeSpec
from detlib.modeling.meta_arch.build import ClassOption, class_options_of
from detlib.modeling.meta_arch.graph.config import OVERRIDES, NodeConfig
from detlib.modeling.meta_arch.graph.construct import BuildContext, Shapes, as_list, construct, overlaid
from detlib.modeling.module_zoo import Wires
from detlib.utils.errors import ConfigError, ConfigTypeError

__all__ = [
    "FEATURES",
    "CalledPart",
    "ConfiguredPart",
    "Data",
    "GraphPart",
    "maps_of",
    "prefixed",
]

FEATURES = ("features", "strides", "feature_dict")
"""Entries that every node with features has of its own: a list of maps, one of their strides, and the maps by name."""

Data = dict[str, Any]


class GraphPart:
    """How modules of one kind are built, and called with a dict. This one is for modules that take the dict itself."""

    def __init__(self, target: Callable[..., nn.Module]) -> None:
        self.target = target

    def cfg(self, context: BuildContext) -> CfgNode:
        """The config as this node sees it."""
        return context.cfg

    def class_options(self, context: BuildContext) -> list[ClassOption]:
        """How many classes the config gives the module, if its attributes name such options as those of models do."""
        node = context.node
        return [
            replace(
                option,
                name=f"{node}: {option.name}",
                key=f"{OVERRIDES}.{node.name}.num_classes",  # They replace what its kwargs have.
                tasks=node.tasks,
            )
            for option in class_options_of(self, self.cfg(context))
        ]

    def build(self, context: BuildContext) -> nn.Module:
        return construct(self.target, context)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires | None:
        """What is known before the module runs; None if nothing is."""
        return getattr(module, "wires", None)

    def output_shape(self, module: nn.Module, input_shape: Shapes) -> Shapes:
        """Of the features that the module gives; empty if it gives none."""
        if hasattr(module, "output_shape"):
            return module.output_shape()
        if not hasattr(module, "get_outplanes"):
            return {}
        planes = as_list(module.get_outplanes())
        strides = as_list(module.get_outstrides()) if hasattr(module, "get_outstrides") else [None] * len(planes)
        return {f"f{i}": ShapeSpec(channels=c, stride=s) for i, (c, s) in enumerate(zip(planes, strides, strict=True))}

    def padding(self, module: nn.Module, input_shape: Shapes) -> dict[str, int]:
        """``size_divisibility`` and ``square_size`` that the module asks of the images; 0 for any."""
        own = {"size_divisibility": getattr(module, "size_divisibility", 0), "square_size": 0}
        return {**own, **getattr(module, "padding_constraints", {})}

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Any:
        """Call the module and return new entries."""
        return module(data)


class CalledPart(GraphPart):
    """A part whose module is called with the entries that ``inputs`` names, whatever it takes otherwise."""

    def __init__(self, part: GraphPart) -> None:
        self.part = part

    def build(self, context: BuildContext) -> nn.Module:
        if not context.node.outputs:
            raise ConfigError(
                "a node with inputs needs outputs: names of what its module returns, as outputs: [logits]"
            )
        return self.part.build(context)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(inputs=node.inputs, outputs=node.outputs)

    def output_shape(self, module: nn.Module, input_shape: Shapes) -> Shapes:
        return self.part.output_shape(module, input_shape)

    def padding(self, module: nn.Module, input_shape: Shapes) -> dict[str, int]:
        return self.part.padding(module, input_shape)

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        returned = module(*(data[name] for name in node.inputs))
        if len(node.outputs) == 1:
            return {node.outputs[0]: returned}
        if not isinstance(returned, tuple | list) or len(returned) != len(node.outputs):
            count = len(returned) if isinstance(returned, tuple | list) else 1
            raise ConfigTypeError(f"outputs names {len(node.outputs)} entries, but the module returned {count}")
        return dict(zip(node.outputs, returned))


class ConfiguredPart(GraphPart):
    """A part that reads the config; the ``kwargs`` of its node are keys of its section.

    Attributes:
        section: of the config.
        name_section: that which has the NAME of the part.
    """

    section = ""
    name_section = ""

    def __init__(self, name: str = "") -> None:
        """
        Args:
            name: in the registry of the parts; "" for what the config names.
        """
        self.name = name

    def cfg(self, context: BuildContext) -> CfgNode:
        node = context.node
        cfg = overlaid(context.cfg, self.section, {key.upper(): value for key, value in node.kwargs.items()}, node)
        return overlaid(cfg, self.name_section or self.section, {"NAME": self.name}, node) if self.name else cfg


def maps_of(context: BuildContext) -> Shapes:
    """The shapes of the feature maps that a node cannot do without.

    Raises:
        ConfigError: there are none.
    """
    if not context.input_shape:
        prev = ", ".join(context.node.prev)
        problem = f"prev {prev} declares no outputs" if prev else "it has no prev"
        raise ConfigError(f"{context.node.type} takes feature maps, but {problem}; name nodes that give some")
    return context.input_shape


def prefixed(losses: Mapping[str, Tensor], node: NodeConfig) -> dict[str, Tensor]:
    """Losses under the names that they have in a graph."""
    return {f"{node.name}.{name}": loss for name, loss in losses.items()}
