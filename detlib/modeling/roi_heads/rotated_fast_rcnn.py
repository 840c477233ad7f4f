"""Fast R-CNN for rotated boxes: heads over rotated regions (https://arxiv.org/abs/1703.01086).

Shapes: R_i regions in image i, K classes, class K being the background; B is K, or 1 where one box serves all classes.
"""

from typing import Any

from torch import Tensor

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec, batched_nms_rotated
from detlib.modeling.box_regression import Box2BoxTransformRotated
from detlib.modeling.roi_heads.box_head import build_box_head
from detlib.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, select_detections
from detlib.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, build_pooler
from detlib.structures import Instances, RotatedBoxes, pairwise_iou_rotated
from detlib.utils.errors import ConfigError

__all__ = [
    "RROIHeads",
    "RotatedFastRCNNOutputLayers",
    "fast_rcnn_inference_rotated",
    "fast_rcnn_inference_single_image_rotated",
]


class RotatedFastRCNNOutputLayers(FastRCNNOutputLayers):
    """The last layers of the box head, for boxes of five numbers; the box loss must be smooth_l1."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": _build_transform(cfg.MODEL.ROI_BOX_HEAD),
        }

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections in each image, as :func:`fast_rcnn_inference_rotated` gives them."""
        return fast_rcnn_inference_rotated(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )


def fast_rcnn_inference_rotated(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """As :func:`fast_rcnn_inference`, for (R_i, B * 5) rotated boxes of each image."""
    results = [
        fast_rcnn_inference_single_image_rotated(*image, score_thresh, nms_thresh, topk_per_image)
        for image in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in results], [kept for _, kept in results]


def fast_rcnn_inference_single_image_rotated(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """As :func:`fast_rcnn_inference_rotated`, for one image."""
    limits = (score_thresh, nms_thresh, topk_per_image)
    boxes = boxes.unflatten(1, (-1, 5))
    return select_detections(boxes, scores, image_shape, *limits, box_type=RotatedBoxes, nms=batched_nms_rotated)


@ROI_HEADS_REGISTRY.register()
class RROIHeads(StandardROIHeads):
    """A box head over rotated regions. There is none for masks or keypoints."""

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """Take the arguments of :class:`StandardROIHeads`."""
        super().__init__(**kwargs)
        if self.mask_on or self.keypoint_on or self.train_on_pred_boxes:
            raise ConfigError(
                "RROIHeads predicts rotated boxes only; set MODEL.MASK_ON, MODEL.KEYPOINT_ON and "
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES to False."
            )

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        layer = head.ROI_EXTRACTOR.get("ROI_LAYER", head.POOLER_TYPE)
        if layer != "ROIAlignRotated":
            raise ConfigError(
                f"MODEL.ROI_BOX_HEAD.POOLER_TYPE, or ROI_EXTRACTOR.ROI_LAYER there, is {layer!r}; RROIHeads needs "
                f"ROIAlignRotated, as regions are rotated."
            )
        pooler, region_shape = build_pooler(cfg, head, input_shape)
        box_head = build_box_head(cfg, region_shape)
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": RotatedFastRCNNOutputLayers(cfg, box_head.output_shape),
        }

    @staticmethod
    def _overlaps(gt_boxes: RotatedBoxes, proposal_boxes: RotatedBoxes) -> Tensor:
        return pairwise_iou_rotated(gt_boxes, proposal_boxes)


def _build_transform(head: CfgNode) -> Box2BoxTransformRotated:
    if len(head.BBOX_REG_WEIGHTS) != 5:
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS is {tuple(head.BBOX_REG_WEIGHTS)}; rotated boxes need 5 numbers, "
            f"such as (10.0, 10.0, 5.0, 5.0, 1.0)."
        )
    if head.BBOX_REG_LOSS_TYPE != "smooth_l1":
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE is {head.BBOX_REG_LOSS_TYPE!r}; rotated boxes need smooth_l1."
        )
    return Box2BoxTransformRotated(weights=head.BBOX_REG_WEIGHTS)
