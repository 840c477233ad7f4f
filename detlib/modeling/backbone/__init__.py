"""Backbones: from an image to named feature maps."""

from detlib.modeling.backbone.adapters import TimmBackbone, TorchvisionBackbone
from detlib.modeling.backbone.backbone import Backbone, select_shapes
from detlib.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone, build_bottom_up
from detlib.modeling.backbone.fpn import FPN, build_resnet_fpn_backbone, build_retinanet_resnet_fpn_backbone
from detlib.modeling.backbone.mobilenet import MobileNet, MobileNetV2
from detlib.modeling.backbone.mvit import MViT, build_mvit_backbone, build_mvit_fpn_backbone
from detlib.modeling.backbone.regnet import RegNet, build_regnet_backbone, build_regnet_fpn_backbone
from detlib.modeling.backbone.resnet import (
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)
from detlib.modeling.backbone.resnet_cifar import ResNet_CIFAR
from detlib.modeling.backbone.swin import SwinTransformer, build_swin_backbone, build_swin_fpn_backbone
from detlib.modeling.backbone.vit import (
    SimpleFeaturePyramid,
    ViT,
    build_vit_backbone,
    build_vit_fpn_backbone,
    get_vit_lr_decay_rate,
)
from detlib.modeling.backbone.with_neck import BackboneWithNeck

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "BackboneWithNeck",
    "BasicStem",
    "BottleneckBlock",
    "MViT",
    "MobileNet",
    "MobileNetV2",
    "RegNet",
    "ResNet",
    "ResNetBlockBase",
    "ResNet_CIFAR",
    "SimpleFeaturePyramid",
    "SwinTransformer",
    "TimmBackbone",
    "TorchvisionBackbone",
    "ViT",
    "build_backbone",
    "build_bottom_up",
    "build_mvit_backbone",
    "build_mvit_fpn_backbone",
    "build_regnet_backbone",
    "build_regnet_fpn_backbone",
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "build_vit_backbone",
    "build_vit_fpn_backbone",
    "get_vit_lr_decay_rate",
    "make_stage",
    "select_shapes",
]
