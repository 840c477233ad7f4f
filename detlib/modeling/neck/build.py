"""The registry of necks."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from detlib.config import build_component
from detlib.config.origins import places
from detlib.layers import ShapeSpec
from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = ["NECK_REGISTRY", "build_neck", "names_neck"]

NECK_REGISTRY = Registry("NECK")
NECK_REGISTRY.__doc__ = """
Necks: modules built by `build_component`, offered ``input_shape``, the ``ShapeSpec`` of each feature map by name. They
turn a dict of maps into a dict of maps and tell the shapes of the latter by ``output_shape()``; the height and width of
the image are padded to multiples of their ``size_divisibility``, if they have one. Classifiers take a neck that pools
the maps and has neither.
"""


def names_neck(node: Mapping[str, Any]) -> bool:
    """Whether a node names a neck at all.

    Raises:
        ConfigError: it has keys, which would do nothing, and nobody has set the name to none.
    """
    keys = [str(key) for key in node if key != "NAME"]
    if keys and not node.get("NAME") and "NAME" not in places(node):
        raise ConfigError(f"MODEL.NECK has {', '.join(keys)} but no NAME; add one, as {{NAME: PAFPN}}")
    return bool(node.get("NAME"))


def build_neck(node: Any, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The neck of a node ``{NAME: PAFPN, OUT_CHANNELS: 256}`` on feature maps of the given shapes."""
    return build_component(NECK_REGISTRY, node, input_shape=input_shape)
