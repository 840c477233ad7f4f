"""Layers and functions from tensors to tensors."""

from torch.nn import BatchNorm2d, ConvTranspose2d, Linear
from torch.nn.functional import interpolate

from detlib.layers.aspp import ASPP
from detlib.layers.batch_norm import CycleBatchNormList, FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from detlib.layers.blocks import CNNBlockBase, DepthwiseSeparableConv2d
from detlib.layers.deform_conv import DeformConv, ModulatedDeformConv
from detlib.layers.losses import ciou_loss, diou_loss, giou_loss, sigmoid_focal_loss, smooth_l1_loss
from detlib.layers.mask_ops import paste_masks_in_image
from detlib.layers.nms import batched_nms, batched_nms_rotated, nms, nms_rotated
from detlib.layers.roi_align import ROIAlign, roi_align
from detlib.layers.roi_align_rotated import ROIAlignRotated, roi_align_rotated
from detlib.layers.shape_spec import ShapeSpec
from detlib.layers.wrappers import (
    Conv2d,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)

__all__ = [
    "ASPP",
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "CycleBatchNormList",
    "DeformConv",
    "DepthwiseSeparableConv2d",
    "FrozenBatchNorm2d",
    "Linear",
    "ModulatedDeformConv",
    "NaiveSyncBatchNorm",
    "ROIAlign",
    "ROIAlignRotated",
    "ShapeSpec",
    "batched_nms",
    "batched_nms_rotated",
    "cat",
    "ciou_loss",
    "cross_entropy",
    "diou_loss",
    "empty_input_loss_func_wrapper",
    "get_norm",
    "giou_loss",
    "interpolate",
    "move_device_like",
    "nms",
    "nms_rotated",
    "nonzero_tuple",
    "paste_masks_in_image",
    "roi_align",
    "roi_align_rotated",
    "shapes_to_tensor",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]
