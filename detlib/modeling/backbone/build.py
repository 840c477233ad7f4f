"""The registry of backbones, and the backbone that a config asks for."""

import inspect
from typing import Any

from detlib.config import CfgNode, build_component
from detlib.config.defaults import DEFAULTS
from detlib.config.origins import CODE, added_by_code, places
from detlib.config.suggest import all_keys, did_you_mean
from detlib.layers import ShapeSpec
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.with_neck import BackboneWithNeck
from detlib.modeling.neck.build import build_neck, names_neck
from detlib.utils.errors import ConfigError, ConfigKeyError
from detlib.utils.registry import Registry

__all__ = ["BACKBONE_REGISTRY", "build_backbone", "build_bottom_up"]

_FREEZE_AT = DEFAULTS["MODEL"]["BACKBONE"]["FREEZE_AT"]

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = """
Backbones: functions or classes that return a :class:`Backbone`. Those whose first argument is ``cfg``, and classes with
``from_config``, are called with ``(cfg, input_shape)``, where ``input_shape`` is the ``ShapeSpec`` of the image. Others
are built by `build_component` from ``MODEL.BACKBONE``; offered are ``input_shape``, ``in_channels`` and ``freeze_at``.
"""


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build what ``cfg.MODEL.BACKBONE`` names, with what ``cfg.MODEL.NECK`` names on top of it.

    Args:
        input_shape: of the image; by default with as many channels as ``cfg.MODEL.PIXEL_MEAN`` has values.
    """
    bottom_up = build_bottom_up(cfg, input_shape)
    if not names_neck(cfg.MODEL.NECK):
        return bottom_up
    neck = build_neck(cfg.MODEL.NECK, bottom_up.output_shape())
    if not hasattr(neck, "output_shape"):
        raise ConfigError(
            f"MODEL.NECK {cfg.MODEL.NECK.NAME!r} gives no feature maps (it has no output_shape()), which "
            f"{cfg.MODEL.META_ARCHITECTURE} needs; use a neck such as PAFPN."
        )
    return BackboneWithNeck(bottom_up, neck)


def build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build what ``cfg.MODEL.BACKBONE`` names, without a neck; arguments as for :func:`build_backbone`."""
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    target = BACKBONE_REGISTRY.get(name)
    if _takes_config(target):
        _check_keys(cfg)
        backbone = target(_with_freeze_at(cfg), input_shape)
    else:
        node = cfg.MODEL.BACKBONE.clone()
        node.defrost()
        offers = {"input_shape": input_shape, "in_channels": input_shape.channels}
        if "FREEZE_AT" not in places(node) or not node.get("FREEZE_AT"):
            # The default is for those that can freeze layers; others are in the wrong only if they are asked to.
            offers["freeze_at"] = node.pop("FREEZE_AT", _FREEZE_AT)
        backbone = build_component(BACKBONE_REGISTRY, node, **offers)
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"MODEL.BACKBONE.NAME {name!r} gave a {type(backbone).__name__}; it must give a detlib.modeling.Backbone, "
            f"whose forward returns feature maps by name and whose output_shape() tells their channels and strides."
        )
    return backbone


def _takes_config(target: Any) -> bool:
    first = next(iter(inspect.signature(target).parameters), None)
    return hasattr(target, "from_config") or first in ("cfg", "config")


def _with_freeze_at(cfg: CfgNode) -> CfgNode:
    """The config with the key that builders read, also where `_DELETE_` has taken it out."""
    if "FREEZE_AT" in cfg.MODEL.BACKBONE:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.FREEZE_AT = _FREEZE_AT
    return cfg


def _check_keys(cfg: CfgNode) -> None:
    """A builder that reads the whole config would pass over keys that a user adds to the section."""
    node = cfg.MODEL.BACKBONE
    for key in node:
        is_known = key in DEFAULTS["MODEL"]["BACKBONE"] or key in added_by_code(node)
        if not is_known and places(node).get(key, CODE) != CODE:
            name = f"MODEL.BACKBONE.{key}"
            raise ConfigKeyError(
                f"{places(node)[key]}: {name}: {node.NAME} takes its options from a section of its own; "
                f"{did_you_mean(name, all_keys(cfg))}"
            )
