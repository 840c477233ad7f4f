"""Models and their parts, built from a config."""

from detlib.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from detlib.modeling.backbone import (
    BACKBONE_REGISTRY,
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    build_backbone,
    build_resnet_backbone,
    make_stage,
)
from detlib.modeling.meta_arch import META_ARCH_REGISTRY, DenseDetector, RetinaNet, build_model
from detlib.modeling.postprocessing import detector_postprocess
from detlib.modeling.proposal_generator import (
    PROPOSAL_GENERATOR_REGISTRY,
    RPN_HEAD_REGISTRY,
    build_proposal_generator,
    build_rpn_head,
)

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY",
    "BACKBONE_REGISTRY",
    "FPN",
    "META_ARCH_REGISTRY",
    "PROPOSAL_GENERATOR_REGISTRY",
    "RPN_HEAD_REGISTRY",
    "Backbone",
    "DenseDetector",
    "ResNet",
    "ResNetBlockBase",
    "RetinaNet",
    "build_anchor_generator",
    "build_backbone",
    "build_model",
    "build_proposal_generator",
    "build_resnet_backbone",
    "build_rpn_head",
    "detector_postprocess",
    "make_stage",
]
