"""Masks of objects by PointRend (https://arxiv.org/abs/1912.08193, sec. 3 and 4.1).

Shapes: R regions in all images together (R_i in image i), K classes, P points in each region, coarse masks of S x S
cells, C channels.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import Conv2d, ShapeSpec
from detlib.modeling import ROI_MASK_HEAD_REGISTRY
from detlib.modeling.backbone import select_shapes
from detlib.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detlib.structures import Boxes, Instances
from detlib.utils.errors import ConfigError

from .point_features import (
    generate_regular_grid_point_coords,
    point_sample,
    point_sample_fine_grained_features,
    sample_point_labels,
)
from .point_head import build_point_head, logits_of_classes, roi_mask_point_loss
from .point_selection import PointSampling, Subdivision

__all__ = ["ConvFCHead", "PointRendMaskHead", "calculate_uncertainty"]


@ROI_MASK_HEAD_REGISTRY.register()
class PointRendMaskHead(nn.Module):
    """A coarse mask of the whole region, refined point by point on the features of the image.

    It takes whole feature maps: :class:`PointRendROIHeads` gives them to it.
    """

    @configurable
    def __init__(
        self,
        *,
        feature_scales: dict[str, float],
        coarse_in_features: list[str],
        coarse_in_resolution: int,
        coarse_head: nn.Module,
        point_in_features: list[str],
        point_head: nn.Module | None,
        sampling: PointSampling,
        subdivision: Subdivision,
    ) -> None:
        """
        Args:
            feature_scales: 1 / stride of each feature map.
            coarse_in_features: feature maps for the coarse head.
            coarse_in_resolution: side of the grid at which it sees them.
            coarse_head: from (R, C, side, side) features to (R, K, S, S) logits.
            point_in_features: feature maps for the point head.
            point_head: see POINT_HEAD_REGISTRY; None makes the coarse mask the result.
            sampling: of points to train on.
            subdivision: of the masks at inference.
        """
        super().__init__()
        self.feature_scales = feature_scales
        self.coarse_in_features = coarse_in_features
        self.coarse_in_resolution = coarse_in_resolution
        self.coarse_head = coarse_head
        self.point_in_features = point_in_features
        self.point_head = point_head
        self.sampling = sampling
        self.subdivision = subdivision

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        _check_config(cfg, input_shape)
        return {
            "feature_scales": {name: 1.0 / shape.stride for name, shape in input_shape.items()},
            "coarse_in_features": cfg.MODEL.ROI_MASK_HEAD.IN_FEATURES,
            "coarse_in_resolution": cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION,
            "coarse_head": _build_coarse_head(cfg, input_shape),
            "point_in_features": cfg.MODEL.POINT_HEAD.IN_FEATURES,
            "point_head": _build_point_head(cfg, input_shape) if cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON else None,
            "sampling": PointSampling.from_config(cfg),
            "subdivision": Subdivision.from_config(cfg),
        }

    def forward(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """
        Args:
            features: whole maps (N, C, H, W) by name.
            instances: of each image: when training, the foreground proposals with ``proposal_boxes``, ``gt_classes``
                and ``gt_masks``; else detections with ``pred_boxes`` and ``pred_classes``.

        Returns:
            ``loss_mask`` and ``loss_mask_point`` when training. Else the same Instances, with ``pred_masks``:
            (R_i, 1, M, M) probabilities, where M = S * 2 ** steps.
        """
        if self.training:
            return self.losses(features, instances)
        return self.inference(features, instances)

    def losses(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """Those of the coarse mask, as of Mask R-CNN, and of the points."""
        boxes = [x.proposal_boxes for x in instances]
        coarse_logits = self._predict_coarse(features, boxes)
        losses = {"loss_mask": mask_rcnn_loss(coarse_logits, instances)}
        if self.point_head is None:
            return losses
        classes = torch.cat([x.gt_classes for x in instances])
        points = self.sampling(coarse_logits, lambda logits: calculate_uncertainty(logits, classes))  # (R, P, 2)
        labels = sample_point_labels(instances, points)  # (R, P)
        logits = self._predict_points(features, boxes, coarse_logits, points)  # (R, K, P)
        losses["loss_mask_point"] = roi_mask_point_loss(logits, instances, labels)
        return losses

    def inference(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Set ``pred_masks`` of each image's detections."""
        boxes = [x.pred_boxes for x in instances]
        classes = torch.cat([x.pred_classes for x in instances])
        coarse_logits = self._predict_coarse(features, boxes)
        # The masks of the other classes are never looked at: without them, all is K times smaller.
        mask_logits = logits_of_classes(coarse_logits, classes)  # (R, 1, S, S)
        if self.point_head is not None:
            mask_logits = self.subdivision(
                mask_logits,
                lambda logits: calculate_uncertainty(logits, classes),
                lambda points: logits_of_classes(self._predict_points(features, boxes, coarse_logits, points), classes),
            )
        mask_rcnn_inference(mask_logits, instances)
        return instances

    def _predict_coarse(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """(R, K, S, S) logits, from a regular grid of points in each box (sec. 4.1) rather than from pooled cells."""
        side, count = self.coarse_in_resolution, sum(len(x) for x in boxes)
        points = generate_regular_grid_point_coords(count, side, boxes[0].device)
        regions = self._point_features(features, self.coarse_in_features, boxes, points)  # (R, C, side ** 2)
        return self.coarse_head(regions.unflatten(2, (side, side)))

    def _predict_points(
        self, features: dict[str, Tensor], boxes: list[Boxes], coarse_logits: Tensor, points: Tensor
    ) -> Tensor:
        """(R, K, P) logits of (R, P, 2) points, or (R, 1, P) if one mask serves all classes."""
        fine_grained = self._point_features(features, self.point_in_features, boxes, points)
        return self.point_head(fine_grained, point_sample(coarse_logits, points))

    def _point_features(
        self, features: dict[str, Tensor], names: list[str], boxes: list[Boxes], points: Tensor
    ) -> Tensor:
        maps, scales = [features[name] for name in names], [self.feature_scales[name] for name in names]
        point_features, _ = point_sample_fine_grained_features(maps, scales, boxes, points)
        return point_features


def calculate_uncertainty(logits: Tensor, classes: Tensor) -> Tensor:
    """How close the mask of each region's class is to a probability of 1/2 (sec. 4.1): minus the size of its logit.

    Args:
        logits: (R, K, ...), or (R, 1, ...) if one mask serves all classes.
        classes: (R,), true or predicted.

    Returns:
        (R, 1, ...).
    """
    return -logits_of_classes(logits, classes).abs()


class ConvFCHead(nn.Module):
    """The coarse mask: a convolution that halves the resolution, then fully connected layers (sec. 4.1)."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dim: int, fc_dims: list[int], output_shape: tuple[int, ...]
    ) -> None:
        """
        Args:
            input_shape: channels, height and width of a region.
            conv_dim: channels of the convolution. If the region has more, a 1x1 convolution comes first.
            fc_dims: width of each fully connected layer.
            output_shape: of the prediction for one region, such as (K, S, S).
        """
        super().__init__()
        self.output_shape = tuple(output_shape)
        channels = input_shape.channels
        self.conv_layers = []
        if channels > conv_dim:
            self.reduce_channel_dim_conv = Conv2d(channels, conv_dim, kernel_size=1, activation=F.relu)
            self.conv_layers.append(self.reduce_channel_dim_conv)
            channels = conv_dim
        self.reduce_spatial_dim_conv = Conv2d(channels, conv_dim, kernel_size=2, stride=2, activation=F.relu)
        self.conv_layers.append(self.reduce_spatial_dim_conv)

        width = conv_dim * (input_shape.height // 2) * (input_shape.width // 2)
        self.fcs = []
        for number, fc_dim in enumerate(fc_dims, start=1):
            fc = nn.Linear(width, fc_dim)
            self.add_module(f"fc{number}", fc)
            self.fcs.append(fc)
            width = fc_dim
        self.prediction = nn.Linear(width, int(np.prod(self.output_shape)))
        self._init_weights()

    def _init_weights(self) -> None:
        for conv in self.conv_layers:
            weight_init.c2_msra_fill(conv)
        for fc in self.fcs:
            weight_init.c2_xavier_fill(fc)
        # Small, so that the first masks are undecided.
        nn.init.normal_(self.prediction.weight, std=0.001)
        nn.init.zeros_(self.prediction.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_MASK_HEAD
        side = head.OUTPUT_SIDE_RESOLUTION
        return {
            "input_shape": input_shape,
            "conv_dim": head.CONV_DIM,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "output_shape": (cfg.MODEL.ROI_HEADS.NUM_CLASSES, side, side),
        }

    def forward(self, x: Tensor) -> Tensor:
        """From (R, C, H, W) to (R, *output_shape)."""
        for conv in self.conv_layers:
            x = conv(x)
        x = x.flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.prediction(x).unflatten(1, self.output_shape)


def _check_config(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
    if not isinstance(input_shape, dict):
        raise ConfigError(
            f"PointRendMaskHead takes whole feature maps, but {cfg.MODEL.ROI_HEADS.NAME} pools regions for it; set "
            f"MODEL.ROI_HEADS.NAME: PointRendROIHeads."
        )
    if cfg.MODEL.POINT_HEAD.NUM_CLASSES != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise ConfigError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {cfg.MODEL.POINT_HEAD.NUM_CLASSES} and MODEL.ROI_HEADS.NUM_CLASSES is "
            f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; set both to the number of classes."
        )


def _build_coarse_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> ConvFCHead:
    shapes = select_shapes(input_shape, cfg.MODEL.ROI_MASK_HEAD.IN_FEATURES, "MODEL.ROI_MASK_HEAD.IN_FEATURES")
    side = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
    return ConvFCHead(cfg, ShapeSpec(channels=sum(shape.channels for shape in shapes), height=side, width=side))


def _build_point_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    shapes = select_shapes(input_shape, cfg.MODEL.POINT_HEAD.IN_FEATURES, "MODEL.POINT_HEAD.IN_FEATURES")
    return build_point_head(cfg, ShapeSpec(channels=sum(shape.channels for shape in shapes)))
