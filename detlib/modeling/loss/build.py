"""The registry of losses."""

from typing import Any

from torch import nn

from detlib.config import build_component
from detlib.utils.registry import Registry

__all__ = ["LOSS_REGISTRY", "build_loss"]

LOSS_REGISTRY = Registry("LOSS")
LOSS_REGISTRY.__doc__ = """
Losses: modules called with ``(pred, target, weight=None, avg_factor=None, reduction_override=None)``, as those in this
package. A box loss is given deltas; with an attribute ``on_boxes = True`` it is given XYXY boxes.
"""


def build_loss(node: Any) -> nn.Module | None:
    """The loss of a node ``{NAME: L1Loss, LOSS_WEIGHT: 2.0}``; None for an empty one. A module comes back as it is."""
    if node is None or (not isinstance(node, nn.Module) and len(node) == 0):
        return None
    return build_component(LOSS_REGISTRY, node)
