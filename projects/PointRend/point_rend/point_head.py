"""The small network that predicts a point from its features (PointRend, sec. 3.3), and its loss for masks of objects.

Shapes: N regions or images, P points in each, K classes, C channels of fine-grained features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec
from detlib.structures import Instances
from detlib.utils.events import log_scalar
from detlib.utils.registry import Registry

__all__ = ["POINT_HEAD_REGISTRY", "StandardPointHead", "build_point_head", "logits_of_classes", "roi_mask_point_loss"]

POINT_HEAD_REGISTRY = Registry("POINT_HEAD")
POINT_HEAD_REGISTRY.__doc__ = """
Point heads: called with ``(cfg, input_shape)``, whose ``channels`` are those of the fine-grained features. The module
takes (N, C, P) fine-grained and (N, K, P) coarse features and returns (N, K, P) logits, or (N, 1, P).
"""


def build_point_head(cfg: CfgNode, input_channels: ShapeSpec) -> nn.Module:
    """Build what ``cfg.MODEL.POINT_HEAD.NAME`` names.

    Args:
        input_channels: the ``ShapeSpec`` of the fine-grained features.
    """
    return POINT_HEAD_REGISTRY.get(cfg.MODEL.POINT_HEAD.NAME)(cfg, input_channels)


@POINT_HEAD_REGISTRY.register()
class StandardPointHead(nn.Module):
    """A multi-layer perceptron, the same for every point: 1x1 convolutions."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        fc_dim: int,
        num_fc: int,
        cls_agnostic_mask: bool,
        coarse_pred_each_layer: bool,
    ) -> None:
        """
        Args:
            input_shape: of the fine-grained features.
            num_classes: K, the channels of the coarse prediction.
            fc_dim: width of the hidden layers.
            num_fc: number of hidden layers.
            cls_agnostic_mask: predict one mask for all classes.
            coarse_pred_each_layer: give the coarse prediction to every layer rather than to the first only.
        """
        super().__init__()
        self.coarse_pred_each_layer = coarse_pred_each_layer
        self.fc_layers = []
        channels = input_shape.channels + num_classes
        for number in range(1, num_fc + 1):
            fc = nn.Conv1d(channels, fc_dim, kernel_size=1)
            weight_init.c2_msra_fill(fc)
            self.add_module(f"fc{number}", fc)
            self.fc_layers.append(fc)
            channels = fc_dim + (num_classes if coarse_pred_each_layer else 0)
        self.predictor = nn.Conv1d(channels, 1 if cls_agnostic_mask else num_classes, kernel_size=1)
        # Small, so that the first points are undecided.
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.POINT_HEAD.NUM_CLASSES,
            "fc_dim": cfg.MODEL.POINT_HEAD.FC_DIM,
            "num_fc": cfg.MODEL.POINT_HEAD.NUM_FC,
            "cls_agnostic_mask": cfg.MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK,
            "coarse_pred_each_layer": cfg.MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER,
        }

    def forward(self, fine_grained_features: Tensor, coarse_features: Tensor) -> Tensor:
        """From (N, C, P) and (N, K, P) to (N, K, P) logits, or (N, 1, P) if one mask serves all classes."""
        x = torch.cat([fine_grained_features, coarse_features], dim=1)
        for layer in self.fc_layers:
            x = F.relu(layer(x))
            if self.coarse_pred_each_layer:
                x = torch.cat([x, coarse_features], dim=1)
        return self.predictor(x)


def roi_mask_point_loss(mask_logits: Tensor, instances: list[Instances], point_labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of the points of each region's mask of its true class (sec. 3.3).

    Args:
        mask_logits: (R, K, P), or (R, 1, P) if one mask serves all classes.
        instances: of each image, R in all, with ``gt_classes``.
        point_labels: (R, P) in [0, 1].
    """
    if len(mask_logits) == 0:
        return mask_logits.sum() * 0
    logits = logits_of_classes(mask_logits, torch.cat([x.gt_classes for x in instances]))[:, 0].float()
    with torch.no_grad():
        log_scalar("point/accuracy", ((logits > 0) == (point_labels > 0.5)).float().mean())
    return F.binary_cross_entropy_with_logits(logits, point_labels.to(logits.dtype))


def logits_of_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """(R, 1, ...) out of (R, K, ...), the channel of each region's class; (R, 1, ...) stays as it is."""
    if logits.shape[1] == 1:
        return logits
    return logits[torch.arange(len(logits), device=logits.device), classes].unsqueeze(1)
