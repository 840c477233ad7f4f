"""FCOS: a class, the distances to the four sides and a "centerness" at every cell (https://arxiv.org/abs/1904.01355).

A cell is written as an anchor: a square of the stride's size around the cell's centre. There is one for each cell.

Shapes: N images, L feature maps of H x W cells, K classes; R = the sum of H * W over all feature maps, M objects in an
image. Anchors are in the order of the maps, then of the cells row by row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec, batched_nms
from detlib.modeling.anchor_generator import DefaultAnchorGenerator
from detlib.modeling.backbone import Backbone, build_backbone, select_shapes
from detlib.modeling.box_regression import Box2BoxTransformLinear, dense_box_regression_loss
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import build_loss, check_losses
from detlib.modeling.loss.classification import FocalLoss
from detlib.modeling.loss.regression import GIoULoss
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.meta_arch.dense_detector import DenseDetector, build_dense_head
from detlib.modeling.meta_arch.retinanet import RetinaNetHead
from detlib.structures import Boxes, ImageList, Instances
from detlib.utils.events import log_scalar

__all__ = ["FCOS", "FCOSHead"]

# A cell of an anchor of size s predicts objects whose farthest side is 4 s to 8 s away: 64 to 128 pixels at stride 16
# (sec. 3.2), with no limit downwards on the finest map nor upwards on the coarsest.
_RANGE_IN_ANCHOR_SIZES = (4, 8)


@META_ARCH_REGISTRY.register()
class FCOS(DenseDetector):
    """FCOS over any backbone whose ``output_shape()`` has the maps ``head_in_features``."""

    num_classes_key = "MODEL.FCOS.NUM_CLASSES"
    # Checkpoints of the field have no key for it, see RetinaNet.
    training_state_buffers = ("loss_normalizer",)

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str] | None = None,
        box2box_transform: Box2BoxTransformLinear | None = None,
        num_classes: int,
        center_sampling_radius: float = 1.5,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        test_score_thresh: float = 0.2,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: list[float],
        pixel_std: list[float],
        loss_cls: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
    ) -> None:
        """
        Args:
            head: takes L feature maps and returns L maps of (N, K, H, W) logits, L of (N, 4, H, W) distances and L of
                (N, 1, H, W) logits of the centerness.
            head_in_features: names of the feature maps, finest first; by default all that the backbone gives.
            box2box_transform: from distances to boxes; by default distances are in strides.
            center_sampling_radius: of the square around an object's centre whose cells predict it, in strides; cells
                outside of the box never do.
            focal_loss_alpha: weight of the foreground in the focal loss, 1 - alpha being that of the background.
            focal_loss_gamma: how much less easy examples count.
            test_score_thresh: detections must score more; a score is the geometric mean of class and centerness.
            test_topk_candidates: how many detections of each feature map enter the NMS.
            test_nms_thresh: IoU above which the worse of two detections of one class is dropped.
            loss_cls: takes (n, K) logits and n labels, where K is the background; by default the focal loss.
            loss_bbox: see :func:`box_regression_loss`; by default the GIoU loss.
        """
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        shapes = backbone.output_shape()
        strides = [shapes[name].stride for name in self.head_in_features]
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[stride] for stride in strides], aspect_ratios=[1.0], strides=strides, offset=0.5
        )
        self.box2box_transform = box2box_transform or Box2BoxTransformLinear(normalize_by_size=True)
        # Losses
        self.center_sampling_radius = center_sampling_radius
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.loss_cls = FocalLoss(gamma=focal_loss_gamma, alpha=focal_loss_alpha) if loss_cls is None else loss_cls
        self.loss_bbox = GIoULoss() if loss_bbox is None else loss_bbox
        check_losses("MODEL.FCOS", self.loss_cls, self.loss_bbox)
        # A guess of the foreground cells in a batch; it is forgotten after a few dozen steps.
        self.register_buffer("loss_normalizer", torch.tensor(300.0), persistent=False)
        # Inference
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        feature_shapes = select_shapes(backbone.output_shape(), cfg.MODEL.FCOS.IN_FEATURES, "MODEL.FCOS.IN_FEATURES")
        return {
            "backbone": backbone,
            "head": build_dense_head(cfg, cfg.MODEL.FCOS, feature_shapes, FCOSHead),
            "head_in_features": cfg.MODEL.FCOS.IN_FEATURES,
            "num_classes": cfg.MODEL.FCOS.NUM_CLASSES,
            "center_sampling_radius": cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": cfg.MODEL.FCOS.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": cfg.MODEL.FCOS.FOCAL_LOSS_GAMMA,
            "test_score_thresh": cfg.MODEL.FCOS.SCORE_THRESH_TEST,
            "test_topk_candidates": cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": cfg.MODEL.FCOS.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "loss_cls": build_loss(cfg.MODEL.FCOS.LOSS_CLS),
            "loss_bbox": build_loss(cfg.MODEL.FCOS.LOSS_BBOX),
        }

    # Training: predictions -> labelled anchors -> losses

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        # L of (N, H * W, K), of (N, H * W, 4) and of (N, H * W, 1)
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes, centerness)

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Give every anchor of every image an object or the background (sec. 3.1 and 3.2).

        Args:
            anchors: of each feature map.
            gt_instances: of each image, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            For each image, (R,) labels: 0 to K - 1 are classes and K is the background; and the (R, 4) boxes that the
            anchors are to predict, which mean something only where the label is a class.
        """
        all_anchors = Boxes.cat(anchors)
        size_ranges = _size_ranges(anchors)  # (R, 2)
        gt_labels, matched_gt_boxes = [], []
        for gt in gt_instances:
            if len(gt) == 0:
                gt_labels.append(torch.full((len(all_anchors),), self.num_classes, device=all_anchors.device))
                matched_gt_boxes.append(torch.zeros_like(all_anchors.tensor))
                continue
            candidates = self._candidates(gt.gt_boxes, all_anchors, size_ranges)  # (M, R)
            # Of several objects, an anchor predicts the smallest.
            areas = gt.gt_boxes.area()[:, None].masked_fill(~candidates, torch.inf)
            smallest_area, matches = areas.min(dim=0)
            labels = gt.gt_classes[matches].masked_fill(smallest_area.isinf(), self.num_classes)
            gt_labels.append(labels)
            matched_gt_boxes.append(gt.gt_boxes.tensor[matches])
        return gt_labels, matched_gt_boxes

    def _candidates(self, gt_boxes: Boxes, anchors: Boxes, size_ranges: Tensor) -> Tensor:
        """(M, R): whether an anchor may predict an object."""
        centers_xy = anchors.get_centers()  # (R, 2)
        anchor_size = anchors.tensor[:, 2] - anchors.tensor[:, 0]
        offset = (gt_boxes.get_centers()[:, None] - centers_xy[None]).abs()  # (M, R, 2)
        near_center = offset.amax(dim=2) < self.center_sampling_radius * anchor_size
        top_left, bottom_right = gt_boxes.tensor[:, None, :2], gt_boxes.tensor[:, None, 2:]
        to_sides = torch.cat([centers_xy - top_left, bottom_right - centers_xy], dim=2)  # (M, R, 4)
        farthest = to_sides.amax(dim=2)
        in_range = (farthest >= size_ranges[:, 0]) & (farthest <= size_ranges[:, 1])
        return near_center & (to_sides.amin(dim=2) > 0) & in_range

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """Class loss over all anchors; box loss and cross entropy of the centerness over those with an object.

        All are divided by a moving average of the number of anchors with an object.

        Args:
            anchors: of each feature map.
            pred_logits: of each feature map, (N, H * W, K).
            gt_labels: of each image, as :meth:`label_anchors` gives them.
            pred_anchor_deltas: of each feature map, (N, H * W, 4).
            gt_boxes: of each image, likewise.
            pred_centerness: of each feature map, (N, H * W, 1) logits.
        """
        labels = torch.stack(gt_labels)  # (N, R)
        fg_mask = labels != self.num_classes
        num_fg = fg_mask.sum()
        log_scalar("num_pos_anchors", num_fg / len(labels))
        normalizer = self._ema_update("loss_normalizer", num_fg.clamp(min=1), 300)

        logits = torch.cat(pred_logits, dim=1).flatten(0, 1)  # (N * R, K)
        loss_cls = self.loss_cls(logits, labels.flatten(), avg_factor=normalizer)
        loss_box_reg = dense_box_regression_loss(
            anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, fg_mask, self.loss_bbox, normalizer
        )
        centerness = torch.cat(pred_centerness, dim=1).squeeze(dim=2)  # (N, R)
        loss_ctr = F.binary_cross_entropy_with_logits(
            centerness[fg_mask], self.compute_ctrness_targets(anchors, gt_boxes)[fg_mask], reduction="sum"
        )
        return {
            "loss_fcos_cls": loss_cls,
            "loss_fcos_loc": loss_box_reg,
            "loss_fcos_ctr": loss_ctr / normalizer,
        }

    @torch.no_grad()
    def compute_ctrness_targets(self, anchors: list[Boxes], gt_boxes: list[Tensor]) -> Tensor:
        """How near the middle of its box each anchor is, eq. 3: 1 in the middle, 0 at the sides and outside.

        Args:
            anchors: of each feature map.
            gt_boxes: of each image, the (R, 4) box of each anchor.

        Returns:
            (N, R).
        """
        all_anchors = Boxes.cat(anchors).tensor
        to_sides = self.box2box_transform.get_deltas(all_anchors.expand(len(gt_boxes), -1, -1), torch.stack(gt_boxes))
        near_x, far_x = to_sides[..., 0::2].aminmax(dim=-1)  # left and right
        near_y, far_y = to_sides[..., 1::2].aminmax(dim=-1)  # top and bottom
        is_inside = (near_x > 0) & (near_y > 0)
        return torch.where(is_inside, (near_x * near_y) / (far_x * far_y), 0.0).sqrt()

    # Inference: predictions -> candidates of each map -> NMS

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        anchors = self.anchor_generator(features)
        results = []
        for i, image_size in enumerate(images.image_sizes):
            # The paper multiplies; the root keeps the scale of probabilities and the order.
            scores = [(x[i].sigmoid() * c[i].sigmoid()).sqrt() for x, c in zip(logits, centerness)]
            results.append(self.inference_single_image(anchors, scores, [x[i] for x in deltas], image_size))
        return results

    def inference_single_image(
        self, anchors: list[Boxes], box_cls: list[Tensor], box_delta: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """Detections in one image.

        Args:
            anchors: of each feature map, H * W boxes.
            box_cls: of each feature map, (H * W, K) scores.
            box_delta: of each feature map, (H * W, 4).
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
class FCOSHead(RetinaNetHead):
    """The towers of RetinaNet with one anchor a cell; the centerness comes from that of the boxes.

    In place of the learned scale of each map (sec. 3.2), distances are in strides.
    """

    @configurable
    def __init__(self, *, input_shape: list[ShapeSpec], conv_dims: list[int], **kwargs: Any) -> None:
        """
        Args:
            input_shape: of the L feature maps.
            conv_dims: output channels of each convolution in a tower.
            kwargs: ``num_classes``, ``norm`` and ``prior_prob`` of :class:`RetinaNetHead`.
        """
        kwargs.setdefault("num_anchors", 1)  # FCOS refuses another number by the shape of the predictions.
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, **kwargs)
        self.ctrness = nn.Conv2d(conv_dims[-1], 1, kernel_size=3, padding=1)
        nn.init.normal_(self.ctrness.weight, std=0.01)
        nn.init.zeros_(self.ctrness.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.FCOS.NUM_CLASSES,
            "conv_dims": [input_shape[0].channels] * cfg.MODEL.FCOS.NUM_CONVS,
            "norm": cfg.MODEL.FCOS.NORM,
            "prior_prob": cfg.MODEL.FCOS.PRIOR_PROB,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """
        Args:
            features: L maps of (N, C, H, W).

        Returns:
            L maps of (N, K, H, W) logits, L of (N, 4, H, W) distances and L of (N, 1, H, W) logits of the centerness.
        """
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        box_features = [self.bbox_subnet(x) for x in features]
        return logits, [self.bbox_pred(x) for x in box_features], [self.ctrness(x) for x in box_features]


def _size_ranges(anchors: list[Boxes]) -> Tensor:
    """(R, 2): least and greatest distance to the farthest side of an object that each anchor may predict."""
    ranges = []
    for level, boxes in enumerate(anchors):
        sizes = boxes.tensor[:, 2] - boxes.tensor[:, 0]
        low, high = (factor * sizes for factor in _RANGE_IN_ANCHOR_SIZES)
        if level == 0:
            low = torch.zeros_like(low)
        if level == len(anchors) - 1:
            high = torch.full_like(high, torch.inf)
        ranges.append(torch.stack([low, high], dim=1))
    return torch.cat(ranges)
