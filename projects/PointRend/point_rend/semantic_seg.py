"""Semantic segmentation by PointRend (https://arxiv.org/abs/1912.08193, sec. 3 and 5).

Shapes: N images of H x W pixels, padded; K classes; P points in each image; s is the stride of the coarse prediction.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec
from detlib.modeling import SEM_SEG_HEADS_REGISTRY
from detlib.modeling.backbone import select_shapes
from detlib.utils.errors import ConfigError

from .point_features import point_sample, sample_point_classes
from .point_head import build_point_head
from .point_selection import PointSampling, Subdivision

__all__ = ["PointRendSemSegHead", "calculate_uncertainty"]


@SEM_SEG_HEADS_REGISTRY.register()
class PointRendSemSegHead(nn.Module):
    """A coarse head, such as :class:`SemSegFPNHead`, refined point by point."""

    @configurable
    def __init__(
        self,
        *,
        coarse_sem_seg_head: nn.Module,
        point_head: nn.Module,
        in_features: list[str],
        sampling: PointSampling,
        subdivision: Subdivision,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
    ) -> None:
        """
        Args:
            coarse_sem_seg_head: with ``layers(features)``, the (N, K, H / s, W / s) logits, ``losses(logits,
                targets)`` and ``common_stride``, which is s.
            point_head: see POINT_HEAD_REGISTRY.
            in_features: feature maps for the point head.
            sampling: of points to train on.
            subdivision: of the prediction at inference.
            ignore_value: label of pixels that do not count.
            loss_weight: factor on the loss of the points; the coarse head has its own.
        """
        super().__init__()
        most_steps = int(math.log2(coarse_sem_seg_head.common_stride))
        if subdivision.num_steps > most_steps:
            raise ConfigError(
                f"MODEL.POINT_HEAD.SUBDIVISION_STEPS is {subdivision.num_steps}, but from the stride of the coarse "
                f"prediction, {coarse_sem_seg_head.common_stride}, it takes {most_steps} to reach pixels; set it to "
                f"{most_steps} or less."
            )
        self.coarse_sem_seg_head = coarse_sem_seg_head
        self.point_head = point_head
        self.in_features = in_features
        self.sampling = sampling
        self.subdivision = subdivision
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        coarse_head = SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME)
        return {
            "coarse_sem_seg_head": coarse_head(cfg, input_shape),
            "point_head": _build_point_head(cfg, input_shape),
            "in_features": cfg.MODEL.POINT_HEAD.IN_FEATURES,
            "sampling": PointSampling.from_config(cfg),
            "subdivision": Subdivision.from_config(cfg),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "loss_weight": cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """
        Args:
            features: maps by name.
            targets: when training, (N, H, W) labels.

        Returns:
            When training, None and the losses; else (N, K, H, W) logits and no losses.
        """
        coarse_logits = self.coarse_sem_seg_head.layers(features)  # (N, K, H / s, W / s)
        if self.training:
            return None, self.losses(features, coarse_logits, targets)
        return self.inference(features, coarse_logits), {}

    def losses(self, features: dict[str, Tensor], coarse_logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Those of the coarse head, and ``loss_sem_seg_point``: cross entropy, averaged over the points that count."""
        losses = self.coarse_sem_seg_head.losses(coarse_logits, targets)
        points = self.sampling(coarse_logits, calculate_uncertainty)  # (N, P, 2)
        logits = self._predict_points(features, coarse_logits, points).float()  # (N, K, P)
        labels = sample_point_classes(targets, points)  # (N, P)
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=self.ignore_value)
        num_points = (labels != self.ignore_value).sum().clamp(min=1)
        return {**losses, "loss_sem_seg_point": loss / num_points * self.loss_weight}

    def inference(self, features: dict[str, Tensor], coarse_logits: Tensor) -> Tensor:
        """(N, K, H, W) logits."""
        logits = self.subdivision(
            coarse_logits,
            calculate_uncertainty,
            lambda points: self._predict_points(features, coarse_logits, points),
        )
        # Fewer steps may end before the pixels.
        remaining = self.coarse_sem_seg_head.common_stride / 2**self.subdivision.num_steps
        if remaining == 1:
            return logits
        return F.interpolate(logits, scale_factor=remaining, mode="bilinear", align_corners=False)

    def _predict_points(self, features: dict[str, Tensor], coarse_logits: Tensor, points: Tensor) -> Tensor:
        """(N, K, P) logits of (N, P, 2) points."""
        fine_grained = torch.cat([point_sample(features[name], points) for name in self.in_features], dim=1)
        return self.point_head(fine_grained, point_sample(coarse_logits, points))


def calculate_uncertainty(sem_seg_logits: Tensor) -> Tensor:
    """How close the two best classes are (sec. 5): minus the difference of their logits.

    Args:
        sem_seg_logits: (N, K, ...), with at least two classes.

    Returns:
        (N, 1, ...).
    """
    best, second = sem_seg_logits.topk(2, dim=1).values.unbind(dim=1)
    return (second - best).unsqueeze(1)


def _build_point_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    if cfg.MODEL.POINT_HEAD.NUM_CLASSES != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        raise ConfigError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {cfg.MODEL.POINT_HEAD.NUM_CLASSES} and MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
            f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}; set both to the number of classes."
        )
    shapes = select_shapes(input_shape, cfg.MODEL.POINT_HEAD.IN_FEATURES, "MODEL.POINT_HEAD.IN_FEATURES")
    return build_point_head(cfg, ShapeSpec(channels=sum(shape.channels for shape in shapes)))
