"""Models and their parts, built from a config."""

from typing import Any

from detlib.modeling import test_time_augmentation
from detlib.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from detlib.modeling.backbone import (
    BACKBONE_REGISTRY,
    FPN,
    Backbone,
    BackboneWithNeck,
    MobileNet,
    MobileNetV2,
    MViT,
    ResNet,
    ResNet_CIFAR,
    ResNetBlockBase,
    SimpleFeaturePyramid,
    SwinTransformer,
    TimmBackbone,
    TorchvisionBackbone,
    ViT,
    build_backbone,
    build_bottom_up,
    build_resnet_backbone,
    get_vit_lr_decay_rate,
    make_stage,
)
from detlib.modeling.batch_augmentation import BATCH_AUGMENT_REGISTRY
from detlib.modeling.head import HEAD_REGISTRY, ClsHead, LinearClsHead, MultiLabelLinearClsHead
from detlib.modeling.loss import LOSS_REGISTRY, build_loss
from detlib.modeling.meta_arch import (
    FCOS,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    DenseDetector,
    GeneralizedRCNN,
    ImageClassifier,
    ModuleGraph,
    PanopticFPN,
    ProposalNetwork,
    RetinaNet,
    SemanticSegmentor,
    build_model,
    build_sem_seg_head,
)
from detlib.modeling.module_zoo import MODULE_ZOO_REGISTRY, Wires
from detlib.modeling.neck import NECK_REGISTRY, PAFPN, BiFPN, GlobalAveragePooling, build_neck
from detlib.modeling.postprocessing import detector_postprocess
from detlib.modeling.proposal_generator import (
    PROPOSAL_GENERATOR_REGISTRY,
    RPN_HEAD_REGISTRY,
    build_proposal_generator,
    build_rpn_head,
)
from detlib.modeling.roi_extractor import (
    ROI_EXTRACTOR_REGISTRY,
    GenericRoIExtractor,
    SingleRoIExtractor,
    build_roi_extractor,
)
from detlib.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    BaseKeypointRCNNHead,
    BaseMaskRCNNHead,
    FastRCNNOutputLayers,
    ROIHeads,
    StandardROIHeads,
    build_box_head,
    build_keypoint_head,
    build_mask_head,
    build_roi_heads,
)
from detlib.modeling.self_supervised import MEMORY_REGISTRY, TARGET_GENERATOR_REGISTRY

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY",
    "BACKBONE_REGISTRY",
    "BATCH_AUGMENT_REGISTRY",
    "FCOS",
    "FPN",
    "HEAD_REGISTRY",
    "LOSS_REGISTRY",
    "MEMORY_REGISTRY",
    "META_ARCH_REGISTRY",
    "MODULE_ZOO_REGISTRY",
    "NECK_REGISTRY",
    "PAFPN",
    "PROPOSAL_GENERATOR_REGISTRY",
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_EXTRACTOR_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "RPN_HEAD_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "TARGET_GENERATOR_REGISTRY",
    "Backbone",
    "BackboneWithNeck",
    "BaseKeypointRCNNHead",
    "BaseMaskRCNNHead",
    "BiFPN",
    "ClsHead",
    "DenseDetector",
    "FastRCNNOutputLayers",
    "GeneralizedRCNN",
    "GenericRoIExtractor",
    "GlobalAveragePooling",
    "ImageClassifier",
    "LinearClsHead",
    "MViT",
    "MobileNet",
    "MobileNetV2",
    "ModuleGraph",
    "MultiLabelLinearClsHead",
    "PanopticFPN",
    "ProposalNetwork",
    "ROIHeads",
    "ResNet",
    "ResNetBlockBase",
    "ResNet_CIFAR",
    "RetinaNet",
    "SemanticSegmentor",
    "SimpleFeaturePyramid",
    "SingleRoIExtractor",
    "StandardROIHeads",
    "SwinTransformer",
    "TimmBackbone",
    "TorchvisionBackbone",
    "ViT",
    "Wires",
    "build_anchor_generator",
    "build_backbone",
    "build_bottom_up",
    "build_box_head",
    "build_keypoint_head",
    "build_loss",
    "build_mask_head",
    "build_model",
    "build_neck",
    "build_proposal_generator",
    "build_resnet_backbone",
    "build_roi_extractor",
    "build_roi_heads",
    "build_rpn_head",
    "build_sem_seg_head",
    "detector_postprocess",
    "get_vit_lr_decay_rate",
    "make_stage",
]


def __getattr__(name: str) -> Any:
    if name in ("DatasetMapperTTA", "GeneralizedRCNNWithTTA"):  # Evaluation is above modeling, hence on first use.
        return getattr(test_time_augmentation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
