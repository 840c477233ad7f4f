"""Heads that look at regions: their class, box, mask and keypoints."""

from detlib.modeling.roi_heads.box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead, build_box_head
from detlib.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

__all__ = ["ROI_BOX_HEAD_REGISTRY", "FastRCNNConvFCHead", "FastRCNNOutputLayers", "build_box_head"]
