"""The registry of losses."""

from typing import Any

from torch import nn

from detlib.config import build_component
from detlib.modeling.loss.weighted import WeightedLoss
from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = ["LOSS_REGISTRY", "build_loss", "check_losses"]

LOSS_REGISTRY = Registry("LOSS")
LOSS_REGISTRY.__doc__ = """
Losses: modules called with ``(pred, target, weight=None, avg_factor=None, reduction_override=None)``, as those in this
package. A box loss is given deltas; with an attribute ``on_boxes = True`` it is given XYXY boxes. A loss of scores has
an attribute ``use_sigmoid``, False if it is of a softmax.
"""


def build_loss(node: Any) -> nn.Module | None:
    """The loss of a node ``{NAME: L1Loss, LOSS_WEIGHT: 2.0}``; None for an empty one. A module comes back as it is."""
    if node is None or (not isinstance(node, nn.Module) and len(node) == 0):
        return None
    return build_component(LOSS_REGISTRY, node)


def check_losses(section: str, loss_cls: nn.Module, loss_bbox: nn.Module, has_background_score: bool = False) -> None:
    """Raise a ConfigError for losses that would not train a detector, or towards nothing that means something.

    Args:
        section: of the config that names the losses by LOSS_CLS and LOSS_BBOX.
        has_background_score: whether the background has a score of its own, which a softmax needs.
    """
    if getattr(loss_cls, "on_boxes", False):
        raise ConfigError(
            f"{section}.LOSS_CLS {type(loss_cls).__name__} is a loss of boxes; use one such as FocalLoss."
        )
    if not has_background_score and not getattr(loss_cls, "use_sigmoid", True):
        raise ConfigError(
            f"{section}.LOSS_CLS {type(loss_cls).__name__} has a softmax, and there is no score for the background; "
            f"add USE_SIGMOID: True if it takes that, or use another loss, such as FocalLoss."
        )
    if hasattr(loss_bbox, "use_sigmoid"):
        raise ConfigError(
            f"{section}.LOSS_BBOX {type(loss_bbox).__name__} is a loss of scores; boxes need one such as SmoothL1Loss "
            f"or GIoULoss."
        )
    for key, loss in (("LOSS_CLS", loss_cls), ("LOSS_BBOX", loss_bbox)):
        if isinstance(loss, WeightedLoss) and loss.reduction != "mean":
            raise ConfigError(
                f"{section}.{key}.REDUCTION is {loss.reduction!r}; it must be 'mean', for which the detector knows the "
                f"divisor."
            )
