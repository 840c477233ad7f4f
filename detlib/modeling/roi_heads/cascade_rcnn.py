"""Cascade R-CNN (https://arxiv.org/abs/1712.00726): box heads in a row, each on the boxes of the one before.

Shapes: N images, R regions in all images together (R_i in image i), M objects in an image, K classes, S stages.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec
from detlib.modeling.box_regression import Box2BoxTransform
from detlib.modeling.matcher import Matcher
from detlib.modeling.roi_heads.box_head import build_box_head
from detlib.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detlib.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, build_pooler
from detlib.structures import Boxes, ImageList, Instances
from detlib.utils.errors import ConfigError
from detlib.utils.events import get_event_storage, has_event_storage, log_scalar

__all__ = ["CascadeROIHeads"]


@ROI_HEADS_REGISTRY.register()
class CascadeROIHeads(StandardROIHeads):
    """S stages of box head, box predictor and matcher; the matchers ask for more overlap from stage to stage.

    ``box_head`` and ``box_predictor`` are lists of modules, one for each stage. Masks and keypoints are those of
    :class:`StandardROIHeads`: trained on the sampled proposals, predicted in the boxes of the last stage.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: nn.Module,
        box_heads: list[nn.Module],
        box_predictors: list[nn.Module],
        proposal_matchers: list[Matcher],
        **kwargs: Any,
    ) -> None:
        """
        Args:
            box_in_features: names of the feature maps to pool from, finest first.
            box_pooler: for all stages.
            box_heads: of each stage.
            box_predictors: of each stage; their boxes do not depend on the class.
            proposal_matchers: of each stage.
        """
        if "proposal_matcher" in kwargs:
            raise ValueError("CascadeROIHeads takes proposal_matchers, one for each stage, and no proposal_matcher")
        if kwargs.get("train_on_pred_boxes"):
            raise ConfigError(
                "CascadeROIHeads trains masks on proposals; set MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES: False."
            )
        if not len(box_heads) == len(box_predictors) == len(proposal_matchers) > 0:
            raise ValueError(
                f"a cascade needs a head, a predictor and a matcher for each stage, got {len(box_heads)}, "
                f"{len(box_predictors)} and {len(proposal_matchers)}"
            )
        super().__init__(
            box_in_features=box_in_features,
            box_pooler=box_pooler,
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            proposal_matcher=proposal_matchers[0],
            **kwargs,
        )
        self.num_cascade_stages = len(box_heads)
        self.proposal_matchers = proposal_matchers

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape)
        del arguments["proposal_matcher"]  # Each stage has its own.
        return arguments

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        _check_config(cfg)
        pooler, region_shape = build_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, input_shape)
        box_heads = [build_box_head(cfg, region_shape) for _ in cascade.IOUS]
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_heads": box_heads,
            "box_predictors": [
                FastRCNNOutputLayers(cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights))
                for head, weights in zip(box_heads, cascade.BBOX_REG_WEIGHTS, strict=True)
            ],
            "proposal_matchers": [Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in cascade.IOUS],
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
        losses = self._forward_box(features, proposals, targets)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances] | None = None
    ) -> dict[str, Tensor] | list[Instances]:
        """The losses of all stages when training, else the detections of each image.

        Args:
            proposals: of each image; when training sampled and matched as for the first stage.
            targets: of each image, when training.
        """
        maps = [features[name] for name in self.box_in_features]
        losses: dict[str, Tensor] = {}
        boxes: list[Tensor] = []
        probs: list[list[Tensor]] = []
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._refined_proposals(boxes, proposals)
                if self.training:
                    self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(maps, proposals, stage)
            # Decisions, not a path for gradients: each stage learns from its own loss (sec. 4.2).
            boxes = [x.detach() for x in predictor.predict_boxes(predictions, proposals)]
            if self.training:
                with _names_under(f"stage{stage}"):
                    stage_losses = predictor.losses(predictions, proposals)
                losses.update({f"{name}_stage{stage}": loss for name, loss in stage_losses.items()})
            else:
                probs.append(predictor.predict_probs(predictions, proposals))
        if self.training:
            return losses

        # Sec. 4.3 scores the regions of the last stage with all heads. Here each head has scored its own regions, so
        # that none runs again.
        scores = [torch.stack(probs_of_image).mean(dim=0) for probs_of_image in zip(*probs, strict=True)]
        image_sizes = [x.image_size for x in proposals]
        limits = predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image
        detections, _ = fast_rcnn_inference(boxes, scores, image_sizes, *limits)
        return detections

    def _run_stage(self, maps: list[Tensor], proposals: list[Instances], stage: int) -> tuple[Tensor, Tensor]:
        """(R, K + 1) logits and (R, 4) deltas."""
        region_features = self.box_pooler(maps, [x.proposal_boxes for x in proposals])
        # The backbone would learn S times as fast as from a single head.
        region_features = _ScaleGradient.apply(region_features, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](region_features))

    def _refined_proposals(self, boxes: list[Tensor], proposals: list[Instances]) -> list[Instances]:
        """Proposals out of the boxes (R_i, 4) that the stage before predicted; empty ones are not trained on."""
        refined = []
        for boxes_xyxy, former in zip(boxes, proposals, strict=True):
            boxes_of_image = Boxes(boxes_xyxy)
            boxes_of_image.clip(former.image_size)
            if self.training:
                boxes_of_image = boxes_of_image[boxes_of_image.nonempty()]
            refined.append(Instances(former.image_size, proposal_boxes=boxes_of_image))
        return refined

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """Give each proposal ``gt_classes`` and ``gt_boxes`` by the matcher of a stage; all of them are kept."""
        num_fg, num_bg = 0, 0
        for proposals_of_image, targets_of_image in zip(proposals, targets, strict=True):
            quality = self._overlaps(targets_of_image.gt_boxes, proposals_of_image.proposal_boxes)  # (M, R_i)
            matches, labels = self.proposal_matchers[stage](quality)
            if len(targets_of_image) > 0:
                classes = targets_of_image.gt_classes[matches].masked_fill(labels == 0, self.num_classes)
                gt_boxes = targets_of_image.gt_boxes[matches]
            else:
                classes = torch.full_like(matches, self.num_classes)
                gt_boxes = Boxes(torch.zeros_like(proposals_of_image.proposal_boxes.tensor))
            proposals_of_image.gt_classes = classes
            proposals_of_image.gt_boxes = gt_boxes
            foreground = (labels == 1).sum()
            num_fg, num_bg = num_fg + foreground, num_bg + len(labels) - foreground
        log_scalar(f"stage{stage}/roi_head/num_fg_samples", num_fg / max(len(proposals), 1))
        log_scalar(f"stage{stage}/roi_head/num_bg_samples", num_bg / max(len(proposals), 1))
        return proposals


class _ScaleGradient(torch.autograd.Function):
    """The input itself, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


def _names_under(scope: str) -> Any:
    """A block in which the names of scalars begin with ``scope/``, if there is a storage to put them into."""
    return get_event_storage().name_scope(scope) if has_event_storage() else nullcontext()


def _check_config(cfg: CfgNode) -> None:
    cascade, heads = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_HEADS
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ConfigError(
            "CascadeROIHeads hands one box of each region to the next stage; set "
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG: True."
        )
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        raise ConfigError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS has {len(cascade.IOUS)} stages and BBOX_REG_WEIGHTS has "
            f"{len(cascade.BBOX_REG_WEIGHTS)}; give both one entry for each stage."
        )
    if list(heads.IOU_THRESHOLDS) != list(cascade.IOUS[:1]):
        raise ConfigError(
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS is {list(heads.IOU_THRESHOLDS)} and the first of "
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is {cascade.IOUS[0]}; set both to the overlap of the first stage."
        )
