"""Two features for each region: from the proposal for its class, from an enlarged one for its box.

Shapes: N images, L feature maps, R regions in all images together, K classes.
"""

from typing import Any

from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec
from detlib.modeling import ROI_HEADS_REGISTRY, FastRCNNOutputLayers, StandardROIHeads, build_box_head
from detlib.modeling.roi_heads.roi_heads import build_pooler
from detlib.structures import Boxes
from detlib.utils.errors import ConfigError

__all__ = ["DoubleHeadOutputLayers", "DoubleHeadRoIHeads"]


@ROI_HEADS_REGISTRY.register()
class DoubleHeadRoIHeads(StandardROIHeads):
    """:class:`StandardROIHeads` whose box head sees each proposal twice.

    Matching, sampling, deltas and masks know the proposal in its own size only.
    """

    @configurable
    def __init__(self, *, reg_roi_scale_factor: float, **kwargs: Any) -> None:
        """Take the arguments of :class:`StandardROIHeads`, and one more.

        Args:
            reg_roi_scale_factor: on width and height of a proposal, for the features from which its box is predicted.
        """
        super().__init__(**kwargs)
        self.reg_roi_scale_factor = reg_roi_scale_factor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "reg_roi_scale_factor": cfg.MODEL.ROI_HEADS.REG_ROI_SCALE_FACTOR,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        pooler, region_shape = build_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, input_shape)
        box_head = build_box_head(cfg, region_shape)
        if not isinstance(box_head.output_shape, tuple):
            raise ConfigError(
                f"DoubleHeadRoIHeads gives the box head two features for each region, and "
                f"{cfg.MODEL.ROI_BOX_HEAD.NAME} takes one; set MODEL.ROI_BOX_HEAD.NAME: DoubleConvFCBBoxHead."
            )
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": DoubleHeadOutputLayers(cfg, box_head.output_shape),
        }

    def _box_features(self, maps: list[Tensor], boxes: list[Boxes]) -> tuple[Tensor, Tensor]:
        x_cls = self.box_pooler(maps, boxes)  # (R, C, H, W)
        x_reg = self.box_pooler(maps, boxes, roi_scale_factor=self.reg_roi_scale_factor)  # (R, C, H, W)
        return self.box_head(x_cls, x_reg)


class DoubleHeadOutputLayers(FastRCNNOutputLayers):
    """The last layers: ``cls_score`` on the features for classes, ``bbox_pred`` on those for boxes."""

    @configurable
    def __init__(self, input_shape: tuple[ShapeSpec, ShapeSpec], **kwargs: Any) -> None:
        """Take the arguments of :class:`FastRCNNOutputLayers`.

        Args:
            input_shape: of the features of one region, for its class and for its box.
        """
        cls_shape, reg_shape = input_shape
        super().__init__(cls_shape, **kwargs)
        self.bbox_pred = nn.Linear(reg_shape.channels, self.bbox_pred.out_features)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """From (R, fc_dim) and (R, conv_dim) features to (R, K + 1) logits and (R, B * 4) deltas."""
        x_cls, x_reg = x
        return self.cls_score(x_cls), self.bbox_pred(x_reg)
