"""Backbones: from an image to named feature maps."""

from detlib.modeling.backbone.backbone import Backbone, select_shapes
from detlib.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone
from detlib.modeling.backbone.fpn import FPN, build_resnet_fpn_backbone, build_retinanet_resnet_fpn_backbone
from detlib.modeling.backbone.resnet import (
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "BasicStem",
    "BottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_backbone",
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
    "make_stage",
    "select_shapes",
]
