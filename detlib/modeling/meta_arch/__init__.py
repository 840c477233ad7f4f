"""Meta-architectures: whole models."""

from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detlib.modeling.meta_arch.dense_detector import DenseDetector
from detlib.modeling.meta_arch.fcos import FCOS
from detlib.modeling.meta_arch.rcnn import GeneralizedRCNN, ProposalNetwork
from detlib.modeling.meta_arch.retinanet import RetinaNet

__all__ = [
    "FCOS",
    "META_ARCH_REGISTRY",
    "DenseDetector",
    "GeneralizedRCNN",
    "ProposalNetwork",
    "RetinaNet",
    "build_model",
]
