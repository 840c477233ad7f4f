"""Double-Head R-CNN (https://arxiv.org/abs/1904.06493): one head for the class of a region, another for its box."""

from detlib.config import CfgNode

from .box_head import DoubleConvFCBBoxHead
from .roi_heads import DoubleHeadOutputLayers, DoubleHeadRoIHeads

__all__ = ["DoubleConvFCBBoxHead", "DoubleHeadOutputLayers", "DoubleHeadRoIHeads", "add_config"]


def add_config(cfg: CfgNode) -> None:
    """Add the option of this project; the others are those of every box head, in ``MODEL.ROI_BOX_HEAD``."""
    # Factor on the sides of a region for the head that predicts its box, which has to see beyond the border.
    cfg.MODEL.ROI_HEADS.REG_ROI_SCALE_FACTOR = 1.3
