"""Keypoints of each region, one heatmap for each (Mask R-CNN, https://arxiv.org/abs/1703.06870, sec. 5).

Shapes: R regions in all images together (R_i in image i), K keypoints, heatmaps of S x S cells.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import Conv2d, ShapeSpec
from detlib.structures import Instances
from detlib.structures.keypoints import heatmaps_to_keypoints
from detlib.utils.errors import ConfigError
from detlib.utils.events import log_scalar
from detlib.utils.registry import Registry

__all__ = [
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "BaseKeypointRCNNHead",
    "KRCNNConvDeconvUpsampleHead",
    "build_keypoint_head",
    "keypoint_rcnn_inference",
    "keypoint_rcnn_loss",
]

ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")
ROI_KEYPOINT_HEAD_REGISTRY.__doc__ = """
Keypoint heads: called with ``(cfg, input_shape)``, the ``ShapeSpec`` of one pooled region. The module takes features
of all regions and the Instances of each image, and returns losses when training, else the Instances with
``pred_keypoints``.
"""


def build_keypoint_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build what ``cfg.MODEL.ROI_KEYPOINT_HEAD.NAME`` names, for regions of the given shape."""
    return ROI_KEYPOINT_HEAD_REGISTRY.get(cfg.MODEL.ROI_KEYPOINT_HEAD.NAME)(cfg, input_shape)


class BaseKeypointRCNNHead(nn.Module):
    """The loss and the inference of Keypoint R-CNN around :meth:`layers`, which a subclass writes."""

    @configurable
    def __init__(self, *, num_keypoints: int, loss_weight: float = 1.0, loss_normalizer: float | str = 1.0) -> None:
        """
        Args:
            num_keypoints: of each object.
            loss_normalizer: "visible" divides the loss by the number of visible keypoints in the batch; a number, by
                that number for each image, so that a keypoint weighs the same however many others are visible.
        """
        super().__init__()
        if isinstance(loss_normalizer, str) and loss_normalizer != "visible":
            raise ConfigError(f"loss_normalizer is {loss_normalizer!r}; it must be 'visible' or a number.")
        self.num_keypoints = num_keypoints
        self.loss_weight = loss_weight
        self.loss_normalizer = loss_normalizer

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head, heads = cfg.MODEL.ROI_KEYPOINT_HEAD, cfg.MODEL.ROI_HEADS
        # As many as a full sample of proposals could have.
        most_visible = head.NUM_KEYPOINTS * heads.BATCH_SIZE_PER_IMAGE * heads.POSITIVE_FRACTION
        return {
            "num_keypoints": head.NUM_KEYPOINTS,
            "loss_weight": head.LOSS_WEIGHT,
            "loss_normalizer": "visible" if head.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS else most_visible,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """
        Args:
            x: (R, C, H, W) features of the regions of all images, in order.
            instances: of each image: when training, the foreground proposals with ``proposal_boxes`` and
                ``gt_keypoints``; else detections with ``pred_boxes``.

        Returns:
            ``loss_keypoint`` when training. Else the same Instances, with ``pred_keypoints``, (R_i, K, 3) of x, y and
            score, and ``pred_keypoint_heatmaps``, (R_i, K, S, S) logits.
        """
        logits = self.layers(x)
        if self.training:
            fixed = None if self.loss_normalizer == "visible" else len(instances) * self.loss_normalizer
            return {"loss_keypoint": keypoint_rcnn_loss(logits, instances, fixed) * self.loss_weight}
        keypoint_rcnn_inference(logits, instances)
        return instances

    def layers(self, x: Tensor) -> Tensor:
        """From (R, C, H, W) features to (R, K, S, S) logits."""
        raise NotImplementedError(f"{type(self).__name__} needs layers()")


# A Sequential, as checkpoints call the layers keypoint_head.conv_fcn1 and so on.
@ROI_KEYPOINT_HEAD_REGISTRY.register()
class KRCNNConvDeconvUpsampleHead(BaseKeypointRCNNHead, nn.Sequential):
    """3x3 convolutions, then a deconvolution and a bilinear enlargement, each to twice the size."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_keypoints: int, conv_dims: list[int] | tuple[int, ...], **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: of the features of one region.
            conv_dims: channels of each convolution.
        """
        super().__init__(num_keypoints=num_keypoints, **kwargs)
        self.up_scale = 2
        channels = input_shape.channels
        for number, width in enumerate(conv_dims, start=1):
            self.add_module(f"conv_fcn{number}", Conv2d(channels, width, 3, padding=1))
            self.add_module(f"conv_fcn_relu{number}", nn.ReLU())
            channels = width
        self.score_lowres = nn.ConvTranspose2d(channels, num_keypoints, kernel_size=4, stride=2, padding=1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "conv_dims": cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS,
        }

    def layers(self, x: Tensor) -> Tensor:
        low = nn.Sequential.forward(self, x)
        return F.interpolate(low, scale_factor=self.up_scale, mode="bilinear", align_corners=False)


def keypoint_rcnn_loss(pred_keypoint_logits: Tensor, instances: list[Instances], normalizer: float | None) -> Tensor:
    """Cross-entropy of each visible keypoint over the cells of its heatmap, one of which is right.

    Args:
        pred_keypoint_logits: (R, K, S, S).
        instances: of each image, with ``proposal_boxes`` and ``gt_keypoints``; they may be missing where there is no
            region.
        normalizer: what the sum is divided by; the number of visible keypoints if None.
    """
    instances = [x for x in instances if len(x) > 0]
    if not instances:
        log_scalar("keypoint_head/num_visible", 0)
        return pred_keypoint_logits.sum() * 0
    size = pred_keypoint_logits.shape[-1]
    targets = [x.gt_keypoints.to_heatmap(x.proposal_boxes.tensor, size) for x in instances]
    cells = torch.cat([cells for cells, _ in targets]).flatten()  # (R * K,)
    visible = torch.cat([visible for _, visible in targets]).flatten()
    # Cells of others do not count: no index by a mask, for which the device would be waited for.
    cells = cells.masked_fill(~visible, -1)
    logits = pred_keypoint_logits.flatten(0, 1).flatten(1)  # (R * K, S * S)
    loss = F.cross_entropy(logits, cells, ignore_index=-1, reduction="sum")
    num_visible = visible.sum()
    log_scalar("keypoint_head/num_visible", num_visible)
    return loss / (num_visible.clamp(min=1) if normalizer is None else normalizer)


def keypoint_rcnn_inference(pred_keypoint_logits: Tensor, pred_instances: list[Instances]) -> None:
    """Set ``pred_keypoints`` and ``pred_keypoint_heatmaps`` of each image's detections, see
    :meth:`BaseKeypointRCNNHead.forward`.

    Args:
        pred_keypoint_logits: (R, K, S, S).
        pred_instances: of each image, with ``pred_boxes``.
    """
    counts = [len(x) for x in pred_instances]
    boxes = torch.cat([x.pred_boxes.tensor for x in pred_instances])
    heatmaps = pred_keypoint_logits.detach()
    keypoints = heatmaps_to_keypoints(heatmaps, boxes.detach())[:, :, [0, 1, 3]]  # The score, not the logit
    for instances, points, maps in zip(pred_instances, keypoints.split(counts), heatmaps.split(counts)):
        instances.pred_keypoints = points
        instances.pred_keypoint_heatmaps = maps
