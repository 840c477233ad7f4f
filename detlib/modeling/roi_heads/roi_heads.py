"""Heads over region proposals: classes, boxes, masks and keypoints (Mask R-CNN, https://arxiv.org/abs/1703.06870).

Shapes: N images, R regions in one image, M objects in it, K classes, class K being the background.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec
from detlib.modeling.backbone.backbone import select_shapes
from detlib.modeling.matcher import Matcher
from detlib.modeling.poolers import ROIPooler
from detlib.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detlib.modeling.roi_extractor import build_roi_extractor, channels_of_all, shape_of_region
from detlib.modeling.roi_heads.box_head import build_box_head
from detlib.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detlib.modeling.roi_heads.keypoint_head import build_keypoint_head
from detlib.modeling.roi_heads.mask_head import build_mask_head
from detlib.modeling.sampling import subsample_labels
from detlib.structures import Boxes, ImageList, Instances, pairwise_iou
from detlib.utils.events import log_scalar
from detlib.utils.registry import Registry

__all__ = [
    "ROI_HEADS_REGISTRY",
    "ROIHeads",
    "StandardROIHeads",
    "build_pooler",
    "build_roi_heads",
    "select_foreground_proposals",
    "select_proposals_with_visible_keypoints",
]

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """
ROI heads: called with ``(cfg, input_shape)``, a dict of the ``ShapeSpec`` of each feature map; a :class:`ROIHeads`.
"""


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> "ROIHeads":
    """Build what ``cfg.MODEL.ROI_HEADS.NAME`` names, over feature maps of the given shapes."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


class ROIHeads(nn.Module):
    """The contract of all ROI heads, and the choice of the proposals that they are trained on."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ) -> None:
        """
        Args:
            num_classes: K, without the background.
            batch_size_per_image: proposals of an image to train on.
            positive_fraction: the largest part of them that are objects.
            proposal_matcher: labels proposals 1 (object), 0 (background) or -1 (ignored) by their IoU with objects.
            proposal_append_gt: also train on the true boxes.
        """
        super().__init__()
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.num_classes = num_classes
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "batch_size_per_image": cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "proposal_append_gt": cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT,
            "proposal_matcher": Matcher(
                cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS, cfg.MODEL.ROI_HEADS.IOU_LABELS, allow_low_quality_matches=False
            ),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            features: (N, C, H, W) by name.
            proposals: of each image, with ``proposal_boxes``.
            targets: of each image when training, with ``gt_boxes``, ``gt_classes`` and what else the heads learn.

        Returns:
            When training, the sampled proposals and the losses by name; else the detections of each image, in the
            coordinates of the network's input, and an empty dict.
        """
        raise NotImplementedError(f"{type(self).__name__} needs forward()")

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Give each proposal an object or the background, and draw those to train on.

        Returns:
            For each image, at most ``batch_size_per_image`` proposals with ``proposal_boxes``, ``gt_classes`` (K for
            the background) and, if the image has objects, every ``gt_*`` field of the object each was matched with;
            on the background these mean nothing.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled_proposals, num_fg, num_bg = [], 0, 0
        for proposals_per_image, targets_per_image in zip(proposals, targets, strict=True):
            quality = self._overlaps(targets_per_image.gt_boxes, proposals_per_image.proposal_boxes)  # (M, R)
            matches, match_labels = self.proposal_matcher(quality)
            sampled, gt_classes = self._sample_proposals(matches, match_labels, targets_per_image.gt_classes)
            sampled_per_image = proposals_per_image[sampled]
            sampled_per_image.gt_classes = gt_classes
            if len(targets_per_image) > 0:
                for name, value in targets_per_image[matches[sampled]].get_fields().items():
                    if name.startswith("gt_") and not sampled_per_image.has(name):
                        sampled_per_image.set(name, value)
            sampled_proposals.append(sampled_per_image)
            background = (gt_classes == self.num_classes).sum()
            num_bg, num_fg = num_bg + background, num_fg + len(gt_classes) - background
        log_scalar("roi_head/num_fg_samples", num_fg / max(len(proposals), 1))
        log_scalar("roi_head/num_bg_samples", num_bg / max(len(proposals), 1))
        return sampled_proposals

    @staticmethod
    def _overlaps(gt_boxes: Boxes, proposal_boxes: Boxes) -> Tensor:
        return pairwise_iou(gt_boxes, proposal_boxes)

    def _sample_proposals(self, matches: Tensor, match_labels: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the proposals to train on, and their classes, from the match of all R proposals of an image."""
        if len(gt_classes) > 0:
            classes = gt_classes[matches]
            classes = classes.masked_fill(match_labels == 0, self.num_classes).masked_fill(match_labels == -1, -1)
        else:
            classes = torch.full_like(matches, self.num_classes)
        foreground, background = subsample_labels(
            classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        sampled = torch.cat([foreground, background])
        return sampled, classes[sampled]


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """A box head, and beside it a mask and a keypoint head if wanted; each pools its own features."""

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: list[str] | None = None,
        mask_pooler: nn.Module | None = None,
        mask_head: nn.Module | None = None,
        keypoint_in_features: list[str] | None = None,
        keypoint_pooler: nn.Module | None = None,
        keypoint_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            box_in_features: names of the feature maps to pool from, finest first.
            box_head: from pooled features to those that the predictor takes.
            box_predictor: classes and boxes, their losses and the detections.
            mask_in_features: likewise; None for no masks.
            mask_pooler: None gives the mask head the whole feature maps.
            keypoint_in_features: likewise; None for no keypoints.
            train_on_pred_boxes: train masks and keypoints on the boxes predicted rather than proposed.
        """
        super().__init__(**kwargs)
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_on = mask_in_features is not None
        if self.mask_on:
            self.mask_in_features = mask_in_features
            self.mask_pooler = mask_pooler
            self.mask_head = mask_head
        self.keypoint_on = keypoint_in_features is not None
        if self.keypoint_on:
            self.keypoint_in_features = keypoint_in_features
            self.keypoint_pooler = keypoint_pooler
            self.keypoint_head = keypoint_head
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg),
            "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
            **cls._init_box_head(cfg, input_shape),
            **cls._init_mask_head(cfg, input_shape),
            **cls._init_keypoint_head(cfg, input_shape),
        }

    # A subclass replaces one of the three to build a part in another way.

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        pooler, region_shape = build_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, input_shape)
        box_head = build_box_head(cfg, region_shape)
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": FastRCNNOutputLayers(cfg, box_head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            return {}
        pooler, region_shape = _build_pooler_if_named(cfg, cfg.MODEL.ROI_MASK_HEAD, input_shape)
        return {
            "mask_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "mask_pooler": pooler,
            "mask_head": build_mask_head(cfg, region_shape),
        }

    @classmethod
    def _init_keypoint_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.KEYPOINT_ON:
            return {}
        pooler, region_shape = _build_pooler_if_named(cfg, cfg.MODEL.ROI_KEYPOINT_HEAD, input_shape)
        return {
            "keypoint_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "keypoint_pooler": pooler,
            "keypoint_head": build_keypoint_head(cfg, region_shape),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if not self.training:
            detections = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        if targets is None:
            raise ValueError(f"{type(self).__name__} needs targets to train; call model.eval() to predict")
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add masks and keypoints to boxes that are known already.

        Args:
            instances: of each image, with ``pred_boxes`` and ``pred_classes``.

        Returns:
            The same objects with ``pred_masks`` and ``pred_keypoints``, as far as there are heads for them.
        """
        if self.training:
            raise RuntimeError("forward_with_given_boxes() predicts; call model.eval() first")
        instances = self._forward_mask(features, instances)
        return self._forward_keypoint(features, instances)

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """The losses when training, else the detections of each image."""
        maps = [features[name] for name in self.box_in_features]
        predictions = self.box_predictor(self._box_features(maps, [p.proposal_boxes for p in proposals]))
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return detections
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                pred_boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for proposals_per_image, boxes in zip(proposals, pred_boxes):
                proposals_per_image.proposal_boxes = Boxes(boxes)
        return losses

    def _box_features(self, maps: list[Tensor], boxes: list[Boxes]) -> Any:
        """What the box predictor takes, of all regions; a subclass may pool them in another way."""
        return self.box_head(self.box_pooler(maps, boxes))

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """The losses when training, else the instances with masks."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            # Masks are learned from objects only.
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        return self.mask_head(self._pool(self.mask_pooler, self.mask_in_features, features, instances), instances)

    def _forward_keypoint(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """The losses when training, else the instances with keypoints."""
        if not self.keypoint_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
            instances = select_proposals_with_visible_keypoints(instances)
        features = self._pool(self.keypoint_pooler, self.keypoint_in_features, features, instances)
        return self.keypoint_head(features, instances)

    def _pool(
        self, pooler: nn.Module | None, names: list[str], features: dict[str, Tensor], instances: list[Instances]
    ) -> Tensor | dict[str, Tensor]:
        """Features of all regions, or the whole maps for a head without a pooler."""
        if pooler is None:
            return {name: features[name] for name in names}
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        return pooler([features[name] for name in names], boxes)


def select_foreground_proposals(proposals: list[Instances], bg_label: int) -> tuple[list[Instances], list[Tensor]]:
    """The proposals of each image that are objects, and which of all they are, (R,) bool.

    Args:
        proposals: with ``gt_classes``, where -1 is ignored.
        bg_label: the class of the background.
    """
    masks = [(p.gt_classes != -1) & (p.gt_classes != bg_label) for p in proposals]
    return [p[mask] for p, mask in zip(proposals, masks)], masks


def select_proposals_with_visible_keypoints(proposals: list[Instances]) -> list[Instances]:
    """The proposals of each image in whose box the object has a visible keypoint; others have nothing to learn from.

    Args:
        proposals: with ``proposal_boxes`` and, where there is any proposal, ``gt_keypoints``.
    """
    selected, num_visible = [], 0
    for proposals_per_image in proposals:
        if len(proposals_per_image) > 0:
            keypoints = proposals_per_image.gt_keypoints.tensor  # (R, keypoints, 3)
            x, y, visibility = keypoints.unbind(dim=-1)
            x0, y0, x1, y1 = proposals_per_image.proposal_boxes.tensor[:, :, None].unbind(dim=1)  # each (R, 1)
            inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
            has_visible = (inside & (visibility >= 1)).any(dim=1)
            proposals_per_image = proposals_per_image[has_visible]
        num_visible += len(proposals_per_image)
        selected.append(proposals_per_image)
    log_scalar("keypoint_head/num_fg_samples", num_visible / max(len(proposals), 1))
    return selected


def build_pooler(cfg: CfgNode, head: CfgNode, input_shape: dict[str, ShapeSpec]) -> tuple[nn.Module, ShapeSpec]:
    """The pooler of a head with its section of the config, and the shape of what it gives for one region.

    ``ROI_EXTRACTOR`` of the section names it, and the POOLER keys count where that node is silent; with an empty node
    it is a :class:`ROIPooler` of the POOLER keys.
    """
    shapes = select_shapes(input_shape, cfg.MODEL.ROI_HEADS.IN_FEATURES, "MODEL.ROI_HEADS.IN_FEATURES")
    size, ratio, layer = head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO, head.POOLER_TYPE
    if head.get("ROI_EXTRACTOR"):
        offers = {"output_size": size, "sampling_ratio": ratio, "roi_layer": layer}
        extractor = build_roi_extractor(head.ROI_EXTRACTOR, shapes, **offers)
        return extractor, shape_of_region(extractor)
    channels = channels_of_all(shapes)
    pooler = ROIPooler(size, [1.0 / shape.stride for shape in shapes], ratio, layer)
    return pooler, ShapeSpec(channels=channels, height=size, width=size)


def _build_pooler_if_named(cfg: CfgNode, head: CfgNode, input_shape: dict[str, ShapeSpec]) -> tuple[Any, Any]:
    """As :func:`build_pooler`; with an empty POOLER_TYPE no pooler, and the shapes of the whole maps by name."""
    if head.POOLER_TYPE or head.ROI_EXTRACTOR:
        return build_pooler(cfg, head, input_shape)
    return None, {name: input_shape[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES}


def __getattr__(name: str) -> Any:
    if name == "Res5ROIHeads":  # It needs what is defined above, hence on first use.
        from detlib.modeling.roi_heads.res5_heads import Res5ROIHeads

        return Res5ROIHeads
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
