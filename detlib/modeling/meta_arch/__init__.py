"""Meta-architectures: whole models."""

from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detlib.modeling.meta_arch.dense_detector import DenseDetector
from detlib.modeling.meta_arch.fcos import FCOS
from detlib.modeling.meta_arch.image_classifier import ImageClassifier
from detlib.modeling.meta_arch.module_graph import ModuleGraph
from detlib.modeling.meta_arch.panoptic_fpn import PanopticFPN
from detlib.modeling.meta_arch.rcnn import GeneralizedRCNN, ProposalNetwork
from detlib.modeling.meta_arch.retinanet import RetinaNet
from detlib.modeling.meta_arch.semantic_seg import SEM_SEG_HEADS_REGISTRY, SemanticSegmentor, build_sem_seg_head

__all__ = [
    "FCOS",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "DenseDetector",
    "GeneralizedRCNN",
    "ImageClassifier",
    "ModuleGraph",
    "PanopticFPN",
    "ProposalNetwork",
    "RetinaNet",
    "SemanticSegmentor",
    "build_model",
    "build_sem_seg_head",
]
