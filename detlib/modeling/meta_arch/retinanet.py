"""RetinaNet: a class and a box for each of many anchors, trained with the focal loss (https://arxiv.org/abs/1708.02002).

Shapes: N images, L feature maps of H x W cells, A anchors at each cell, K classes; R = the sum of H * W * A over all
feature maps, M objects in an image. Anchors are in the order of the maps, then of the cells row by row.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import CycleBatchNormList, ShapeSpec, batched_nms, get_norm
from detlib.modeling.anchor_generator import build_anchor_generator
from detlib.modeling.backbone import Backbone, build_backbone, select_shapes
from detlib.modeling.box_regression import Box2BoxTransform, box_loss, dense_box_regression_loss
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import build_loss, check_losses
from detlib.modeling.loss.classification import FocalLoss
from detlib.modeling.matcher import Matcher
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.meta_arch.dense_detector import DenseDetector, build_dense_head
from detlib.structures import Boxes, ImageList, Instances, pairwise_iou
from detlib.utils.errors import ConfigError
from detlib.utils.events import log_scalar

__all__ = ["RetinaNet", "RetinaNetHead"]


@META_ARCH_REGISTRY.register()
class RetinaNet(DenseDetector):
    """RetinaNet over any backbone whose ``output_shape()`` has the maps ``head_in_features``."""

    num_classes_key = "MODEL.RETINANET.NUM_CLASSES"
    # Checkpoints of the field have no key for the loss normaliser, so it is no persistent buffer: the trainer saves it
    # among its own state, and resuming resumes it.
    training_state_buffers = ("loss_normalizer",)

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Matcher,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        pixel_mean: list[float],
        pixel_std: list[float],
        vis_period: int = 0,
        input_format: str = "BGR",
        loss_cls: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
    ) -> None:
        """
        Args:
            head: takes L feature maps and returns L maps of (N, A * K, H, W) logits and L of (N, A * 4, H, W) deltas.
            anchor_generator: makes the anchors of one image from L feature maps.
            box2box_transform: between anchors and boxes.
            anchor_matcher: labels anchors 1 (object), 0 (background) or -1 (ignored) by their IoU with the objects.
            focal_loss_alpha: weight of the foreground in the focal loss, 1 - alpha being that of the background.
            focal_loss_gamma: how much less easy examples count.
            smooth_l1_beta: where L2 turns into L1; 0 is L1.
            box_reg_loss_type: smooth_l1, giou, diou or ciou.
            test_score_thresh: detections must score more.
            test_topk_candidates: how many detections of each feature map enter the NMS.
            test_nms_thresh: IoU above which the worse of two detections of one class is dropped.
            vis_period: kept for subclasses that read it; the trainer's hook does the drawing.
            input_format: channel order of the images, for drawing.
            loss_cls: takes (n, K) logits and n labels, where K is the background; by default the focal loss.
            loss_bbox: see :func:`box_regression_loss`; by default that of ``box_reg_loss_type``.
        """
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.anchor_matcher = anchor_matcher
        # Losses
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.loss_cls = FocalLoss(gamma=focal_loss_gamma, alpha=focal_loss_alpha) if loss_cls is None else loss_cls
        self.loss_bbox = box_loss(box_reg_loss_type, smooth_l1_beta) if loss_bbox is None else loss_bbox
        check_losses("MODEL.RETINANET", self.loss_cls, self.loss_bbox)
        # A guess of the foreground anchors in a batch; it is forgotten after a few dozen steps.
        self.register_buffer("loss_normalizer", torch.tensor(100.0), persistent=False)
        # Inference
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        # Drawing
        self.vis_period = vis_period
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        feature_shapes = select_shapes(
            backbone.output_shape(), cfg.MODEL.RETINANET.IN_FEATURES, "MODEL.RETINANET.IN_FEATURES"
        )
        return {
            "backbone": backbone,
            "head": build_dense_head(cfg, cfg.MODEL.RETINANET, feature_shapes, RetinaNetHead),
            "head_in_features": cfg.MODEL.RETINANET.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "box2box_transform": Box2BoxTransform(weights=cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(
                cfg.MODEL.RETINANET.IOU_THRESHOLDS, cfg.MODEL.RETINANET.IOU_LABELS, allow_low_quality_matches=True
            ),
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "focal_loss_alpha": cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE,
            "test_score_thresh": cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
            "test_topk_candidates": cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": cfg.MODEL.RETINANET.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
            "loss_cls": build_loss(cfg.MODEL.RETINANET.LOSS_CLS),
            "loss_bbox": build_loss(cfg.MODEL.RETINANET.LOSS_BBOX),
        }

    # Training: predictions -> labelled anchors -> losses

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        # L of (N, H * W * A, K) and L of (N, H * W * A, 4)
        pred_logits, pred_anchor_deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Give every anchor of every image an object or the background.

        Args:
            anchors: of each feature map.
            gt_instances: of each image, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            For each image, (R,) labels: 0 to K - 1 are classes, K is the background and -1 is not used; and the (R, 4)
            boxes that the anchors are to predict, which mean something only where the label is a class.
        """
        all_anchors = Boxes.cat(anchors)
        gt_labels, matched_gt_boxes = [], []
        for gt in gt_instances:
            if len(gt) == 0:
                gt_labels.append(torch.full((len(all_anchors),), self.num_classes, device=all_anchors.device))
                matched_gt_boxes.append(torch.zeros_like(all_anchors.tensor))
                continue
            matches, anchor_labels = self.anchor_matcher(pairwise_iou(gt.gt_boxes, all_anchors))  # from (M, R)
            labels = gt.gt_classes[matches]
            labels = labels.masked_fill(anchor_labels == 0, self.num_classes).masked_fill(anchor_labels == -1, -1)
            gt_labels.append(labels)
            matched_gt_boxes.append(gt.gt_boxes.tensor[matches])
        return gt_labels, matched_gt_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Class loss over all anchors that count and box loss over those with an object.

        Both are divided by a moving average of the number of anchors with an object, which varies much between batches.

        Args:
            anchors: of each feature map.
            pred_logits: of each feature map, (N, H * W * A, K).
            gt_labels: of each image, as :meth:`label_anchors` gives them.
            pred_anchor_deltas: of each feature map, (N, H * W * A, 4).
            gt_boxes: of each image, likewise.
        """
        labels = torch.stack(gt_labels)  # (N, R)
        fg_mask = (labels >= 0) & (labels != self.num_classes)
        num_fg = fg_mask.sum()
        log_scalar("num_pos_anchors", num_fg / len(labels))
        normalizer = self._ema_update("loss_normalizer", num_fg.clamp(min=1), 100)

        valid_mask = labels >= 0
        valid_logits = torch.cat(pred_logits, dim=1)[valid_mask]
        loss_cls = self.loss_cls(valid_logits, labels[valid_mask], avg_factor=normalizer)
        loss_box_reg = dense_box_regression_loss(
            anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, fg_mask, self.loss_bbox, normalizer
        )
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}

    # Inference: predictions -> candidates of each map -> NMS

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        pred_logits, pred_anchor_deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        return self.inference(pred_logits, pred_anchor_deltas, self.anchor_generator(features), images.image_sizes)

    def inference(
        self,
        pred_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        anchors: list[Boxes],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Detections in every image of a batch; the arguments are as those of :meth:`losses`."""
        results = []
        for i, image_size in enumerate(image_sizes):
            scores = [logits[i].sigmoid() for logits in pred_logits]
            deltas = [deltas[i] for deltas in pred_anchor_deltas]
            results.append(self.inference_single_image(anchors, scores, deltas, image_size))
        return results

    def inference_single_image(
        self, anchors: list[Boxes], box_cls: list[Tensor], box_delta: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """Detections in one image.

        Args:
            anchors: of each feature map, H * W * A boxes.
            box_cls: of each feature map, (H * W * A, K) probabilities.
            box_delta: of each feature map, (H * W * A, 4).
            image_size: height and width of the network's input.

        Returns:
            Instances with ``pred_boxes``, ``scores`` and ``pred_classes``, best first.
        """
        candidates = self._decode_multi_level_predictions(
            anchors, box_cls, box_delta, self.test_score_thresh, self.test_topk_candidates, image_size
        )
        keep = batched_nms(
            candidates.pred_boxes.tensor, candidates.scores, candidates.pred_classes, self.test_nms_thresh
        )
        return candidates[keep[: self.max_detections_per_image]]


@HEAD_REGISTRY.register()
class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions over every feature map: one for the classes, one for the boxes.

    The convolutions are shared by all feature maps.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: list[int],
        norm: str | Callable = "",
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            input_shape: of the L feature maps.
            num_anchors: A.
            conv_dims: output channels of each convolution in a tower.
            norm: after each of them. Batch norms keep statistics of their own for each feature map.
            prior_prob: probability of an object that every anchor predicts before training (sec. 4.1).
        """
        super().__init__()
        _check_input(input_shape, conv_dims)
        norm = _norm_per_level(norm, len(input_shape))
        self.cls_subnet = _tower(input_shape[0].channels, conv_dims, norm)
        self.bbox_subnet = _tower(input_shape[0].channels, conv_dims, norm)
        self.cls_score = _conv3x3(conv_dims[-1], num_anchors * num_classes)
        self.bbox_pred = _conv3x3(conv_dims[-1], num_anchors * 4)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "num_anchors": _same_for_all_levels(build_anchor_generator(cfg, input_shape).num_cell_anchors),
            "conv_dims": [input_shape[0].channels] * cfg.MODEL.RETINANET.NUM_CONVS,
            "norm": cfg.MODEL.RETINANET.NORM,
            "prior_prob": cfg.MODEL.RETINANET.PRIOR_PROB,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """
        Args:
            features: L maps of (N, C, H, W).

        Returns:
            L maps of (N, A * K, H, W) logits and L of (N, A * 4, H, W) deltas.
        """
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        deltas = [self.bbox_pred(self.bbox_subnet(x)) for x in features]
        return logits, deltas


def _tower(in_channels: int, conv_dims: list[int], norm: str | Callable) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out_channels in conv_dims:
        layers.append(_conv3x3(in_channels, out_channels))
        if norm:
            layers.append(get_norm(norm, out_channels))
        layers.append(nn.ReLU())
        in_channels = out_channels
    return nn.Sequential(*layers)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv


def _check_input(input_shape: list[ShapeSpec], conv_dims: list[int]) -> None:
    channels = [shape.channels for shape in input_shape]
    if len(set(channels)) != 1:
        raise ConfigError(
            f"the feature maps have {channels} channels; a head that they share takes maps with equally many. Set "
            f"MODEL.NECK to one such as PAFPN, or use a backbone with an FPN."
        )
    if not conv_dims:
        raise ConfigError("the head needs one convolution or more; set NUM_CONVS, or CONV_DIMS in HEAD.")


def _norm_per_level(norm: str | Callable, num_levels: int) -> str | Callable:
    """Feature maps differ in their statistics, so that one batch norm cannot serve them all at test time."""
    bn_classes = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
    if norm in bn_classes:
        return lambda channels: CycleBatchNormList(num_levels, bn_class=bn_classes[norm], num_features=channels)
    return norm


def _same_for_all_levels(num_anchors: list[int]) -> int:
    if len(set(num_anchors)) != 1:
        raise ConfigError(
            f"RetinaNet shares its head between feature maps, so all need as many anchors, got {num_anchors}; "
            f"change MODEL.ANCHOR_GENERATOR.SIZES or ASPECT_RATIOS."
        )
    return num_anchors[0]
