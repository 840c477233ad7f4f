"""A small black image through a module graph that was just built, to find layers that do not fit what comes to them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detlib.modeling.meta_arch.graph.wires import Node
from detlib.utils.errors import ConfigError

__all__ = ["check_layers"]

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


@torch.no_grad()
def check_layers(graph: nn.Module, plan: Mapping[str, Node]) -> None:
    """Run a ModuleGraph in eval mode on one black image.

    Only a layer that gets other channels than it was made for counts. Whatever else goes wrong may be due to the image,
    or to what samples would have brought, and ends the trial.

    Args:
        plan: its nodes by name.

    Raises:
        ConfigError: a layer does not fit; the error names its node.
    """
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in graph.parameters()):
        return  # Lazy layers take their shape from what they see first, which should be data.
    misfits: list[str] = []
    modes = {module: module.training for module in graph.modules()}
    handles = [
        module.register_forward_pre_hook(_comparison(name, plan[name.partition(".")[0]], misfits))
        for name, module in graph.nodes.named_modules()
        if isinstance(module, tuple(_LAYERS))
    ]
    size = max(MIN_SIZE, graph.preprocessor.size_divisibility)
    try:
        graph.eval()
        with torch.random.fork_rng(devices=[]):
            graph([{"image": torch.zeros(len(graph.pixel_mean), size, size)}])
    except Exception as error:  # Modules of users can fail in any way.
        if misfits:
            raise ConfigError(misfits[0]) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def _comparison(name: str, node: Node, misfits: list[str]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that compares the channels of what comes with those that a layer takes."""

    def compare(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        attribute, axis = next(spec for cls, spec in _LAYERS.items() if isinstance(module, cls))
        x, channels = inputs[0] if inputs else None, getattr(module, attribute)
        if not isinstance(x, Tensor) or x.dim() < max(-axis, axis + 1) or x.shape[axis] == channels:
            return
        misfits.append(
            f"{node}: its layer {name.partition('.')[2] or name} takes {channels} channels, but {x.shape[axis]} come, "
            f"in a tensor of shape {tuple(x.shape)}; compare its kwargs with what its prev gives"
        )
        raise ConfigError(misfits[-1])

    return compare
