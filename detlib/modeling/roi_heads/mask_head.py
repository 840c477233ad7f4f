"""A mask for each region (Mask R-CNN, https://arxiv.org/abs/1703.06870, sec. 3).

Shapes: R regions in all images together (R_i in image i), K classes, masks of M x M cells.
"""

from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import Conv2d, ShapeSpec, get_norm
from detlib.structures import Instances
from detlib.utils.errors import ConfigError
from detlib.utils.events import log_scalar
from detlib.utils.registry import Registry

__all__ = [
    "ROI_MASK_HEAD_REGISTRY",
    "BaseMaskRCNNHead",
    "MaskRCNNConvUpsampleHead",
    "build_mask_head",
    "mask_rcnn_inference",
    "mask_rcnn_loss",
]

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
ROI_MASK_HEAD_REGISTRY.__doc__ = """
Mask heads: called with ``(cfg, input_shape)``, the ``ShapeSpec`` of one pooled region. The module takes the features of
all regions and the Instances of each image, and returns losses when training, else the Instances with ``pred_masks``.
"""


def build_mask_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build what ``cfg.MODEL.ROI_MASK_HEAD.NAME`` names, for regions of the given shape."""
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)


class BaseMaskRCNNHead(nn.Module):
    """The loss and the inference of Mask R-CNN around :meth:`layers`, which a subclass writes."""

    @configurable
    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0) -> None:
        """
        Args:
            vis_period: kept for subclasses that read it; the trainer's hook does the drawing.
        """
        super().__init__()
        self.loss_weight = loss_weight
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {"vis_period": cfg.VIS_PERIOD}

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """
        Args:
            x: (R, C, H, W) features of the regions of all images, in order.
            instances: of each image: when training, the foreground proposals with ``proposal_boxes``, ``gt_classes``
                and ``gt_masks``; else detections with ``pred_classes``.

        Returns:
            ``loss_mask`` when training. Else the same Instances, with ``pred_masks``: (R_i, 1, M, M) probabilities.
        """
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def layers(self, x: Tensor) -> Tensor:
        """From (R, C, H, W) features to (R, K, M, M) logits, or (R, 1, M, M) if one mask serves all classes."""
        raise NotImplementedError(f"{type(self).__name__} needs layers()")


# A Sequential, as checkpoints call the layers mask_head.mask_fcn1, mask_head.deconv and so on.
@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):
    """3x3 convolutions, a deconvolution to twice the size, and a 1x1 convolution (fig. 4, right)."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, conv_dims: list[int], conv_norm: str = "", **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: of the features of one region.
            num_classes: masks of a region; 1 if one serves all classes.
            conv_dims: channels of each 3x3 convolution, and last of the deconvolution.
            conv_norm: normalisation, see :func:`get_norm`.
        """
        super().__init__(**kwargs)
        if not conv_dims:
            raise ConfigError("the mask head needs the channels of its deconvolution: conv_dims must not be empty.")
        norm_options: dict[str, Any] = {"bias": not conv_norm, "activation": nn.ReLU()}
        self.conv_norm_relus = []
        channels = input_shape.channels
        for number, width in enumerate(conv_dims[:-1], start=1):
            conv = Conv2d(channels, width, 3, padding=1, norm=get_norm(conv_norm, width), **norm_options)
            weight_init.c2_msra_fill(conv)
            self.add_module(f"mask_fcn{number}", conv)
            self.conv_norm_relus.append(conv)
            channels = width
        self.deconv = nn.ConvTranspose2d(channels, conv_dims[-1], kernel_size=2, stride=2)
        self.add_module("deconv_relu", nn.ReLU())
        weight_init.c2_msra_fill(self.deconv)
        self.predictor = Conv2d(conv_dims[-1], num_classes, kernel_size=1)
        # Small, so that the first masks are undecided.
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "conv_norm": head.NORM,
        }

    def layers(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: list[Instances], vis_period: int = 0) -> Tensor:
    """Mean binary cross-entropy of each region's mask of its true class; other classes' masks do not compete (sec. 3).

    Args:
        pred_mask_logits: (R, K, M, M), or (R, 1, M, M) if one mask serves all classes.
        instances: of each image, with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``; they may be missing where
            there is no region.
        vis_period: not used; kept for callers that pass it.
    """
    instances = [x for x in instances if len(x) > 0]
    if not instances:
        return pred_mask_logits.sum() * 0
    mask_size = pred_mask_logits.shape[-1]
    targets = torch.cat([x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, mask_size) for x in instances])
    targets = targets.to(device=pred_mask_logits.device, dtype=torch.bool)  # (R, M, M)
    logits = _of_classes(pred_mask_logits, torch.cat([x.gt_classes for x in instances]))
    _log_accuracy(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="mean")


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: list[Instances]) -> None:
    """Set ``pred_masks`` of each image's detections: (R_i, 1, M, M) probabilities of the predicted class.

    Args:
        pred_mask_logits: (R, K, M, M), or (R, 1, M, M) if one mask serves all classes.
        pred_instances: of each image, with ``pred_classes``.
    """
    classes = torch.cat([x.pred_classes for x in pred_instances])
    probabilities = _of_classes(pred_mask_logits, classes).sigmoid()[:, None]
    counts = [len(x) for x in pred_instances]
    for instances, masks in zip(pred_instances, probabilities.split(counts)):
        instances.pred_masks = masks


def _of_classes(mask_logits: Tensor, classes: Tensor) -> Tensor:
    """(R, M, M) out of (R, K, M, M)."""
    if mask_logits.shape[1] == 1:
        return mask_logits[:, 0]
    return mask_logits[torch.arange(len(mask_logits), device=mask_logits.device), classes]


@torch.no_grad()
def _log_accuracy(logits: Tensor, targets: Tensor) -> None:
    """Scalars: the part of wrong cells among all, among the background and among the foreground."""
    wrong = (logits > 0) != targets
    num_foreground = targets.sum()
    num_background = targets.numel() - num_foreground
    log_scalar("mask_rcnn/accuracy", 1 - wrong.float().mean())
    log_scalar("mask_rcnn/false_positive", (wrong & ~targets).sum() / num_background.clamp(min=1))
    log_scalar("mask_rcnn/false_negative", (wrong & targets).sum() / num_foreground.clamp(min=1))
