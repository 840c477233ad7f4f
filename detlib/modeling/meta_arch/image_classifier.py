"""Image classification: a class for the whole image, or several.

Shapes: N images of H x W pixels, padded; K classes; C channels of the features.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from detlib.config import CfgNode, build_component, configurable
from detlib.layers import ShapeSpec
from detlib.modeling.backbone import Backbone, build_bottom_up
from detlib.modeling.batch_augmentation import RandomBatchAugment, build_batch_augment
from detlib.modeling.head import HEAD_REGISTRY, Features
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.neck import build_neck
from detlib.modeling.neck.build import names_neck
from detlib.modeling.preprocessing import ImagePreprocessor, PreprocessesImages, class_labels_of

__all__ = ["ImageClassifier"]

STAGES = ("backbone", "neck", "pre_logits")


@META_ARCH_REGISTRY.register()
class ImageClassifier(PreprocessesImages, nn.Module):
    """Backbone, a neck that pools its feature maps, and a head, which has the loss."""

    num_image_classes_key = "MODEL.CLASSIFIER.NUM_CLASSES"

    @configurable
    def __init__(
        self,
        *,
        preprocessor: ImagePreprocessor,
        backbone: Backbone,
        neck: nn.Module,
        head: nn.Module,
        num_classes: int,
        batch_augment: RandomBatchAugment | None = None,
    ) -> None:
        """
        Args:
            neck: from feature maps to (N, C) features: a tensor, or several, of which heads use the last.
            head: with the methods of :class:`~detlib.modeling.head.ClsHead`.
            num_classes: K.
            batch_augment: mixes training images and their labels.
        """
        super().__init__()
        self.preprocessor = preprocessor
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.num_classes = num_classes
        self.batch_augment = batch_augment

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_bottom_up(cfg)
        neck = build_pooling_neck(cfg, backbone.output_shape())
        classifier = cfg.MODEL.CLASSIFIER
        return {
            "preprocessor": ImagePreprocessor(
                cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, backbone.size_divisibility, backbone.padding_constraints
            ),
            "backbone": backbone,
            "neck": neck,
            "head": build_head(classifier, feature_channels(backbone, neck)),
            "num_classes": classifier.NUM_CLASSES,
            "batch_augment": build_batch_augment(classifier.BATCH_AUGMENTS, classifier.BATCH_AUGMENT_PROBS),
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: for each image a dict with

                * ``image``: (C, H, W) in the channel order and range of ``INPUT.FORMAT``;
                * when training, ``label``, a class; or ``labels``, a list of classes; or ``score``, (K,) soft labels.

        Returns:
            The losses by name when training. Else for each image a dict of ``pred_score``, the (K,) probabilities, and
            ``pred_label``, a class or, from a head for several labels, a list of classes.
        """
        images = self.preprocess_image(batched_inputs).tensor  # (N, 3, H, W)
        if not self.training:
            return self.head.predict(self.extract_feat(images))
        targets = class_labels_of(batched_inputs, self.num_classes, self.device)  # (N,) or, if soft, (N, K)
        if self.batch_augment is not None:
            images, targets = self.batch_augment(images, _soft(targets, self.num_classes))
        return self.head.loss(self.extract_feat(images), targets)

    def extract_feat(self, images: Tensor, stage: str = "neck") -> Features:
        """The features that a stage gives.

        Args:
            images: (N, 3, H, W), as ``preprocess_image(batched_inputs).tensor`` are.
            stage: "backbone" (feature maps by name), "neck" (pooled), or "pre_logits" (what the last layer takes).
        """
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}; it must be one of {', '.join(STAGES)}")
        features = self.backbone(images)
        if stage == "backbone":
            return features
        features = self.neck(features)
        return features if stage == "neck" else self.head.pre_logits(features)


def build_pooling_neck(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """What ``cfg.MODEL.NECK`` names; where it names nothing, average pooling."""
    return build_neck(cfg.MODEL.NECK if names_neck(cfg.MODEL.NECK) else {"NAME": "GlobalAveragePooling"}, input_shape)


def feature_channels(backbone: Backbone, neck: nn.Module) -> int:
    """Channels of the last features of the neck; one without ``output_shape()`` keeps those of its input."""
    shapes = (neck if hasattr(neck, "output_shape") else backbone).output_shape()
    return list(shapes.values())[-1].channels


def build_head(classifier: CfgNode, in_channels: int) -> nn.Module:
    """What ``classifier.HEAD`` names."""
    return build_component(HEAD_REGISTRY, classifier.HEAD, in_channels=in_channels, num_classes=classifier.NUM_CLASSES)


def _soft(targets: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(targets, num_classes).float() if targets.dim() == 1 else targets
