"""Heads that share the last stage of a ResNet, computed for each region: the C4 model of Faster R-CNN.

From https://arxiv.org/abs/1506.01497 with the ResNet of https://arxiv.org/abs/1512.03385, sec. A.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec, get_norm
from detlib.modeling.backbone import BottleneckBlock, make_stage
from detlib.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detlib.modeling.roi_heads.mask_head import build_mask_head
from detlib.modeling.roi_heads.roi_heads import (
    ROI_HEADS_REGISTRY,
    ROIHeads,
    build_pooler,
    select_foreground_proposals,
)
from detlib.structures import Boxes, ImageList, Instances
from detlib.utils.errors import ConfigError

__all__ = ["Res5ROIHeads", "Res5ROIHeadsExtraNorm"]


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """Pool from one feature map and run res5 on each region; class, box and mask are predicted from its output."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: nn.Module,
        res5: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps to pool from.
            res5: from pooled features to those of all heads.
            box_predictor: classes and boxes from the mean of the latter over the region.
            mask_head: masks from the latter; None for no masks.
        """
        super().__init__(**kwargs)
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor
        self.mask_on = mask_head is not None
        if self.mask_on:
            self.mask_head = mask_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if cfg.MODEL.KEYPOINT_ON:
            raise ConfigError("Res5ROIHeads has no keypoint head; set MODEL.ROI_HEADS.NAME: StandardROIHeads.")
        if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.ROI_EXTRACTOR:
            raise ConfigError(
                "Res5ROIHeads makes masks from the regions of its box head; set MODEL.ROI_BOX_HEAD.ROI_EXTRACTOR in "
                "place of MODEL.ROI_MASK_HEAD.ROI_EXTRACTOR."
            )
        pooler, region_shape = build_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, input_shape)
        res5, out_channels = cls._build_res5_block(cfg)
        arguments = {
            **super().from_config(cfg),
            "in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "pooler": pooler,
            "res5": res5,
            "box_predictor": FastRCNNOutputLayers(cfg, ShapeSpec(channels=out_channels)),
        }
        if cfg.MODEL.MASK_ON:
            shape = ShapeSpec(channels=out_channels, width=region_shape.width, height=region_shape.height)
            arguments["mask_head"] = build_mask_head(cfg, shape)
        return arguments

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        """Stage res5 for regions, which begins with a stride of 2, and the number of its output channels."""
        resnets = cfg.MODEL.RESNETS
        if any(resnets.DEFORM_ON_PER_STAGE[3:]) or resnets.DEPTH < 50:
            raise ConfigError(
                f"Res5ROIHeads builds bottlenecks, none of them deformable; MODEL.RESNETS.DEPTH is {resnets.DEPTH} "
                f"and DEFORM_ON_PER_STAGE {list(resnets.DEFORM_ON_PER_STAGE)}. Set a depth of 50 or more and False for "
                f"the last stage, or MODEL.ROI_HEADS.NAME: StandardROIHeads."
            )
        out_channels = resnets.RES2_OUT_CHANNELS * 8
        blocks = make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=out_channels // 2,
            bottleneck_channels=resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 8,
            out_channels=out_channels,
            num_groups=resnets.NUM_GROUPS,
            norm=resnets.NORM,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), out_channels

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if self.training:
            if targets is None:
                raise ValueError(f"{type(self).__name__} needs targets to train; call model.eval() to predict")
            proposals = self.label_and_sample_proposals(proposals, targets)
        region_features = self._shared_roi_transform(features, [p.proposal_boxes for p in proposals])  # (R, C, H, W)
        predictions = self.box_predictor(region_features.mean(dim=(2, 3)))
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return self.forward_with_given_boxes(features, detections), {}

        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_on:
            foreground, masks = select_foreground_proposals(proposals, self.num_classes)
            # The same features serve boxes and masks.
            losses.update(self.mask_head(region_features[torch.cat(masks)], foreground))
        return proposals, losses

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add masks to boxes that are known already.

        Args:
            instances: of each image, with ``pred_boxes`` and ``pred_classes``.
        """
        if self.training:
            raise RuntimeError("forward_with_given_boxes() predicts; call model.eval() first")
        if not self.mask_on:
            return instances
        region_features = self._shared_roi_transform(features, [x.pred_boxes for x in instances])
        return self.mask_head(region_features, instances)

    def _shared_roi_transform(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """(R, C, H, W) features of the regions of all images."""
        return self.res5(self.pooler([features[name] for name in self.in_features], boxes))


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Heads with a norm behind res5, for pre-trained weights of any magnitude (MoCo, arXiv:1911.05722)."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        res5, out_channels = super()._build_res5_block(cfg)
        norm = get_norm(cfg.MODEL.RESNETS.NORM, out_channels)
        if norm is None:
            raise ConfigError(
                f"{cls.__name__} ends with a norm, but MODEL.RESNETS.NORM is empty; set it, or set "
                "MODEL.ROI_HEADS.NAME: Res5ROIHeads."
            )
        res5.add_module("norm", norm)
        return res5, out_channels
