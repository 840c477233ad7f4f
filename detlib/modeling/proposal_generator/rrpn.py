"""RRPN: rotated proposals, from anchors with an angle (https://arxiv.org/abs/1703.01086).

Shapes: N images, L feature maps, R boxes of one map in one image.
"""

from typing import Any

import torch
from torch import Tensor

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec, batched_nms_rotated
from detlib.modeling.box_regression import Box2BoxTransformRotated
from detlib.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detlib.modeling.proposal_generator.proposal_utils import find_top_proposals
from detlib.modeling.proposal_generator.rpn import RPN
from detlib.structures import Instances, RotatedBoxes, pairwise_iou_rotated
from detlib.utils.errors import ConfigError

__all__ = ["RRPN", "find_top_rrpn_proposals"]


@torch.no_grad()
def find_top_rrpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """As :func:`find_top_rpn_proposals`, for (N, R, 5) rotated boxes; those that are nearly upright are clipped."""
    limits = (nms_thresh, pre_nms_topk, post_nms_topk, min_box_size)
    return find_top_proposals(
        proposals,
        pred_objectness_logits,
        image_sizes,
        *limits,
        training,
        box_type=RotatedBoxes,
        nms=batched_nms_rotated,
    )


@PROPOSAL_GENERATOR_REGISTRY.register()
class RRPN(RPN):
    """An RPN whose anchors, true boxes and proposals are rotated."""

    @configurable
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of :class:`RPN`; the box loss must be smooth_l1."""
        super().__init__(*args, **kwargs)
        if self.box_reg_loss_type != "smooth_l1":
            raise ConfigError(
                f"MODEL.RPN.BBOX_REG_LOSS_TYPE is {self.box_reg_loss_type!r}; rotated boxes need smooth_l1."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": Box2BoxTransformRotated(weights=cfg.MODEL.RPN.BBOX_REG_WEIGHTS),
        }

    _find_top_proposals = staticmethod(find_top_rrpn_proposals)

    @staticmethod
    def _overlaps(gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        return pairwise_iou_rotated(RotatedBoxes(gt_boxes), RotatedBoxes(anchors))
