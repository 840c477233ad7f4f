"""RPN: from a feature map's cells to boxes that may hold an object (Faster R-CNN, https://arxiv.org/abs/1506.01497).

Shapes: N images, L feature maps of H x W cells, A anchors at each cell, D numbers of a box (4, or 5 if rotated);
R = the sum of H * W * A over all feature maps, M objects in an image. Anchors are in the order of the maps, then of the
cells row by row.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import Conv2d, ShapeSpec
from detlib.modeling.anchor_generator import build_anchor_generator
from detlib.modeling.backbone.backbone import select_shapes
from detlib.modeling.box_regression import Box2BoxTransform, box_loss, dense_box_regression_loss
from detlib.modeling.loss import build_loss, check_losses
from detlib.modeling.loss.classification import CrossEntropyLoss
from detlib.modeling.matcher import Matcher
from detlib.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detlib.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detlib.modeling.sampling import subsample_labels
from detlib.structures import Boxes, ImageList, Instances, pairwise_iou
from detlib.utils.errors import ConfigError, DatasetError
from detlib.utils.events import log_scalar
from detlib.utils.memory import retry_if_cuda_oom
from detlib.utils.registry import Registry

__all__ = ["RPN", "RPN_HEAD_REGISTRY", "StandardRPNHead", "build_rpn_head"]

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = """
RPN heads: called with ``(cfg, input_shape)``, a list of the ``ShapeSpec`` of each feature map. The module takes L
feature maps and returns L maps of (N, A, H, W) objectness logits and L of (N, A * D, H, W) deltas.
"""


def build_rpn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build what ``cfg.MODEL.RPN.HEAD_NAME`` names."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convolutions, then for each anchor an objectness and deltas by 1x1 convolutions; the same for all maps."""

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: list[int] | tuple[int, ...] = (-1,)
    ) -> None:
        """
        Args:
            in_channels: of each feature map.
            num_anchors: at each cell.
            box_dim: numbers of a box.
            conv_dims: channels of each 3x3 convolution; -1 keeps the number of its input.
        """
        super().__init__()
        if not conv_dims or any(width <= 0 and width != -1 for width in conv_dims):
            raise ConfigError(
                f"MODEL.RPN.CONV_DIMS is {list(conv_dims)}; give the channels of at least one convolution, each above "
                "0, or -1 for those of its input."
            )
        convs, channels = [], in_channels
        for width in conv_dims:
            out_channels = channels if width == -1 else width
            convs.append(Conv2d(channels, out_channels, kernel_size=3, padding=1, activation=nn.ReLU()))
            channels = out_channels
        # Checkpoints call a single convolution "conv", and several "conv.conv0", "conv.conv1", ...
        self.conv = convs[0] if len(convs) == 1 else nn.Sequential()
        for i, conv in enumerate(convs):
            if len(convs) > 1:
                self.conv.add_module(f"conv{i}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in [*convs, self.objectness_logits, self.anchor_deltas]:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        anchor_generator = build_anchor_generator(cfg, input_shape)
        return {
            "in_channels": _same_for_all(
                "channels", [x.channels for x in input_shape], "set MODEL.NECK to one such as PAFPN"
            ),
            "num_anchors": _same_for_all(
                "anchors at each cell",
                anchor_generator.num_anchors,
                "change MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS",
            ),
            "box_dim": anchor_generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """From L maps of (N, C, H, W) to L maps of (N, A, H, W) logits and L of (N, A * D, H, W) deltas."""
        hidden = [self.conv(x) for x in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Region proposal network: a head, anchors, and the choice of the best boxes."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[float, float],
        post_nms_topk: tuple[float, float],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        loss_cls: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps, in the order of the anchor generator's strides.
            head: see :data:`RPN_HEAD_REGISTRY`.
            anchor_generator: makes the anchors of one image from L feature maps.
            anchor_matcher: labels anchors 1 (object), 0 (background) or -1 (ignored) by their IoU with the objects.
            box2box_transform: between anchors and boxes.
            batch_size_per_image: how many anchors are drawn for the loss.
            positive_fraction: at most this part of them are objects.
            pre_nms_topk: how many boxes of each feature map enter the NMS, when training and else.
            post_nms_topk: how many proposals an image gets, when training and else.
            nms_thresh: IoU above which the worse of two boxes is dropped.
            min_box_size: boxes with a side of at most that many pixels of the network's input are dropped.
            anchor_boundary_thresh: anchors that reach further outside the image than that many pixels are not trained
                on; a negative number keeps all.
            loss_weight: of both losses, or of ``loss_rpn_cls`` and ``loss_rpn_loc`` by name.
            box_reg_loss_type: smooth_l1, giou, diou or ciou.
            smooth_l1_beta: where L2 turns into L1; 0 is L1.
            loss_cls: takes (n, 1) logits and n labels, 0 for objects and 1 for the background; by default the binary
                cross-entropy.
            loss_bbox: see :func:`box_regression_loss`; by default that of ``box_reg_loss_type``.
        """
        super().__init__()
        _check_box_dim(anchor_generator, box2box_transform)
        self.in_features = list(in_features)
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        # By self.training.
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta
        self.loss_cls = CrossEntropyLoss(use_sigmoid=True) if loss_cls is None else loss_cls
        self.loss_bbox = box_loss(box_reg_loss_type, smooth_l1_beta) if loss_bbox is None else loss_bbox
        check_losses("MODEL.RPN", self.loss_cls, self.loss_bbox)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        rpn = cfg.MODEL.RPN
        shapes = select_shapes(input_shape, rpn.IN_FEATURES, "MODEL.RPN.IN_FEATURES")
        return {
            "in_features": rpn.IN_FEATURES,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": rpn.LOSS_WEIGHT,
                "loss_rpn_loc": rpn.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
            },
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
            "loss_cls": build_loss(rpn.LOSS_CLS),
            "loss_bbox": build_loss(rpn.LOSS_BBOX),
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            images: only their sizes are used.
            features: maps of (N, C, H, W) by name.
            gt_instances: of each image, with ``gt_boxes``; needed when training.

        Returns:
            For each image, Instances with ``proposal_boxes`` and ``objectness_logits``, best first, without gradients;
            and the losses when training, else an empty dict.
        """
        feature_maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(feature_maps)
        logit_maps, delta_maps = self.rpn_head(feature_maps)
        pred_objectness_logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logit_maps]  # L of (N, H * W * A)
        box_dim = self.anchor_generator.box_dim
        pred_anchor_deltas = [  # L of (N, H * W * A, D)
            x.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in delta_maps
        ]
        losses = {}
        if self.training:
            if gt_instances is None:
                raise DatasetError(
                    "training the RPN needs the true boxes; pass gt_instances, or call eval() to predict."
                )
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        proposals = self.predict_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, images.image_sizes)
        return proposals, losses

    # Training: anchors -> labels -> a sample of them -> losses

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Give every anchor of every image an object or the background, and draw those that count.

        Args:
            anchors: of each feature map.
            gt_instances: of each image, with ``gt_boxes``.

        Returns:
            For each image, (R,) labels: 1 is an object, 0 the background and -1 does not count; and the (R, D) boxes
            that the anchors are to predict, which mean something only where the label is 1.
        """
        all_anchors = type(anchors[0]).cat(anchors)
        gt_labels, matched_gt_boxes = [], []
        for gt in gt_instances:
            labels, boxes = self._label_anchors(all_anchors, gt)
            gt_labels.append(self._subsample_labels(labels))
            matched_gt_boxes.append(boxes)
        return gt_labels, matched_gt_boxes

    def _label_anchors(self, anchors: Boxes, gt: Instances) -> tuple[Tensor, Tensor]:
        """(R,) labels and (R, D) boxes of one image."""
        # With very many objects the (M, R) matrix may not fit on the device; then it is made on the CPU.
        overlaps = retry_if_cuda_oom(self._overlaps)(gt.gt_boxes.tensor, anchors.tensor)
        matches, labels = (x.to(anchors.device) for x in retry_if_cuda_oom(self.anchor_matcher)(overlaps))
        if self.anchor_boundary_thresh >= 0:
            inside = anchors.inside_box(gt.image_size, self.anchor_boundary_thresh)
            labels = labels.masked_fill(~inside, -1)
        if len(gt) == 0:
            return labels, torch.zeros_like(anchors.tensor)
        return labels, gt.gt_boxes.tensor[matches]

    @staticmethod
    def _overlaps(gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        """(M, R) from (M, D) and (R, D); of tensors, which a retry can move to the CPU."""
        return pairwise_iou(Boxes(gt_boxes), Boxes(anchors))

    def _subsample_labels(self, label: Tensor) -> Tensor:
        """Set to -1 the labels of all anchors but a random sample."""
        positive, negative = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
        return torch.full_like(label, -1).index_fill_(0, positive, 1).index_fill_(0, negative, 0)

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Class loss over the sample, and the box loss over the objects in it (eq. 1).

        Both are divided by the size of a full sample.

        Args:
            anchors: of each feature map.
            pred_objectness_logits: of each feature map, (N, H * W * A).
            gt_labels: of each image, as :meth:`label_and_sample_anchors` gives them.
            pred_anchor_deltas: of each feature map, (N, H * W * A, D).
            gt_boxes: of each image, likewise.

        Returns:
            ``loss_rpn_cls`` and ``loss_rpn_loc``.
        """
        labels = torch.stack(gt_labels)  # (N, R)
        num_images = len(labels)
        positive = labels == 1
        log_scalar("rpn/num_pos_anchors", positive.sum() / num_images)
        log_scalar("rpn/num_neg_anchors", (labels == 0).sum() / num_images)

        logits = torch.cat(pred_objectness_logits, dim=1).reshape(-1, 1)  # (N * R, 1)
        normalizer = self.batch_size_per_image * num_images
        # Weights of 0 and 1: a mask as an index would make the device wait.
        counts = (labels >= 0).flatten().to(logits.dtype)
        loss_cls = self.loss_cls(logits, (~positive).flatten().long(), weight=counts, avg_factor=normalizer)
        loss_loc = dense_box_regression_loss(
            anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, positive, self.loss_bbox, normalizer
        )
        losses = {"loss_rpn_cls": loss_cls, "loss_rpn_loc": loss_loc}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    # Proposals: predictions -> boxes -> the best of them

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """The best boxes of each image, without gradients: what follows takes the boxes as given.

        The arguments are as those of :meth:`losses`.
        """
        return self._find_top_proposals(
            self._decode_proposals(anchors, pred_anchor_deltas),
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )

    _find_top_proposals = staticmethod(find_top_rpn_proposals)

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[Tensor]) -> list[Tensor]:
        """The predicted boxes of each feature map, (N, H * W * A, D)."""
        proposals = []
        for level_anchors, deltas in zip(anchors, pred_anchor_deltas):
            repeated = level_anchors.tensor.expand(len(deltas), -1, -1)
            boxes = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), repeated.flatten(0, 1))
            proposals.append(boxes.view(repeated.shape))
        return proposals


def _check_box_dim(anchor_generator: nn.Module, box2box_transform: Any) -> None:
    weights = getattr(box2box_transform, "weights", None)
    box_dim = getattr(anchor_generator, "box_dim", 4)
    if weights is not None and len(weights) != box_dim:
        raise ConfigError(
            f"the anchors have {box_dim} numbers, but MODEL.RPN.BBOX_REG_WEIGHTS is {tuple(weights)}. Upright boxes "
            f"need PROPOSAL_GENERATOR.NAME: RPN, ANCHOR_GENERATOR.NAME: DefaultAnchorGenerator and 4 weights; "
            f"rotated boxes RRPN, RotatedAnchorGenerator and 5 weights."
        )


def _same_for_all(what: str, values: list[int], advice: str) -> int:
    if len(set(values)) != 1:
        raise ConfigError(
            f"the RPN shares its head between feature maps, so all need as many {what}, got {list(values)}; "
            f"{advice}, or change MODEL.RPN.IN_FEATURES."
        )
    return values[0]
