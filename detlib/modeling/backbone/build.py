"""The registry of backbones."""

from detlib.config import CfgNode
from detlib.layers import ShapeSpec
from detlib.modeling.backbone.backbone import Backbone
from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = ["BACKBONE_REGISTRY", "build_backbone"]

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = """
Backbones: functions or classes called with ``(cfg, input_shape)`` that return a :class:`Backbone`. ``input_shape`` is
the ``ShapeSpec`` of the image.
"""


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build what ``cfg.MODEL.BACKBONE.NAME`` names.

    Args:
        input_shape: of the image; by default with as many channels as ``cfg.MODEL.PIXEL_MEAN`` has values.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    if not isinstance(backbone, Backbone):
        raise ConfigError(f"MODEL.BACKBONE.NAME {name!r} gave a {type(backbone).__name__}; it must return a Backbone.")
    return backbone
