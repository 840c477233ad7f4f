"""Small black images through a module graph that was just built, to find what does not fit before there is data."""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from detlib.modeling.meta_arch.graph.base import GraphPart
from detlib.modeling.meta_arch.graph.config import suggestion
from detlib.modeling.meta_arch.graph.construct import in_eval_mode
from detlib.modeling.meta_arch.graph.results import check_output
from detlib.modeling.meta_arch.graph.run import GraphRun
from detlib.modeling.meta_arch.graph.wires import Node
from detlib.utils.errors import ConfigError, ConfigKeyError

__all__ = ["try_out"]

MIN_SIZE = 64

# Layers that know how many channels they take, the name of this number, and the axis of the channels.
_LAYERS: dict[type[nn.Module], tuple[str, int]] = {
    nn.Conv1d: ("in_channels", -2),
    nn.Conv2d: ("in_channels", -3),
    nn.Conv3d: ("in_channels", -4),
    nn.ConvTranspose2d: ("in_channels", -3),
    nn.BatchNorm2d: ("num_features", -3),
    nn.GroupNorm: ("num_channels", 1),
    nn.Linear: ("in_features", -1),
}


@dataclass(frozen=True)
class Misfit:
    """A layer that gets other channels than it was made for.

    Attributes:
        layer: its name, from that of its node on.
    """

    layer: str
    expected: int
    came: int


@torch.no_grad()
def try_out(graph: nn.Module, known: Collection[str]) -> None:
    """Run the nodes of a ModuleGraph in eval mode on one black image.

    Only a layer that gets other channels than it was made for counts, an entry that a node declares to take but nobody
    gives, and what a part of detlib refuses. Whatever else goes wrong may be due to the image, or to what samples would
    have brought, and ends the trial.

    Args:
        known: entries that come with the batch, or may.

    Raises:
        ConfigError: a layer does not fit, or a part refuses what it gets; the error names its node.
        ConfigKeyError: an entry is missing, likewise; or nobody gives what MODEL.MODULE_GRAPH.OUTPUTS has.
    """
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in graph.parameters()):
        return  # Lazy layers take their shape from what they see first, which should be data.
    size = max(MIN_SIZE, graph.preprocessor.size_divisibility)
    with in_eval_mode(graph), torch.random.fork_rng(devices=[]):
        misfit = _first_misfit(graph, size, known)
        if misfit is None:
            return
        # What comes to a layer after flatten() depends on the size of the images, which is that of the data, unless all
        # are padded to one square.
        has_one_size = graph.preprocessor.padding_constraints.get("square_size")
        if not has_one_size and misfit != _first_misfit(graph, 2 * size, known):
            return
    name, _, layer = misfit.layer.partition(".")
    node = next(node for node in graph.plan if node.name == name)
    raise ConfigError(
        f"{node}: its layer {layer or name} takes {misfit.expected} channels, but {misfit.came} come; compare its "
        f"kwargs with what its prev gives"
    )


def _first_misfit(graph: nn.Module, size: int, known: Collection[str]) -> Misfit | None:
    misfits: list[Misfit] = []
    run = GraphRun(graph.collate([{"image": torch.zeros(len(graph.pixel_mean), size, size)}]))
    with ExitStack() as hooks:
        for name, module in graph.nodes.named_modules():
            if isinstance(module, tuple(_LAYERS)):
                hooks.callback(module.register_forward_pre_hook(_comparison(name, misfits)).remove)
        for node in graph.plan:
            _check_entries(node, run, known)
            try:
                run.run(node, graph.nodes[node.name])
            except ConfigError as error:
                if misfits or isinstance(error, ConfigKeyError) or type(node.part) is GraphPart:
                    return misfits[0] if misfits else None
                raise
            except Exception:  # Modules of users can fail in any way.
                return misfits[0] if misfits else None
            known = (*known, *node.given(training=False))
    for key in graph.outputs:
        if not any(fnmatchcase(key, name) for name in known):
            check_output(key, run)
    return None


def _comparison(name: str, misfits: list[Misfit]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that compares the channels of what comes with those that a layer takes."""

    def compare(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        attribute, axis = next(spec for cls, spec in _LAYERS.items() if isinstance(module, cls))
        x, channels = inputs[0] if inputs else None, getattr(module, attribute)
        if not isinstance(x, Tensor) or x.dim() < max(-axis, axis + 1) or x.shape[axis] == channels:
            return
        misfits.append(Misfit(name, channels, x.shape[axis]))
        raise ConfigError(f"{name} takes {channels} channels")

    return compare


def _check_entries(node: Node, run: GraphRun, known: Collection[str]) -> None:
    """Nodes before may not have declared what they give, but have given it by now."""
    for name in node.taken(training=False):
        if name not in run.data and not any(fnmatchcase(name, key) for key in known):
            raise ConfigKeyError(
                f"{node} takes {name!r}, which no node before has given; {suggestion(name, run.data)}There is "
                f"{', '.join(run.data)}. If samples bring it, list it in MODEL.MODULE_GRAPH.INPUTS"
            )
