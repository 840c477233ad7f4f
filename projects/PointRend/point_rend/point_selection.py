"""The two strategies by which points are chosen: at random for training, by subdivision for inference (sec. 3.1).

Shapes: N masks or images, C channels of logits, P points.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detlib.config import CfgNode
from detlib.utils.errors import ConfigError

from .point_features import get_uncertain_point_coords_on_grid, get_uncertain_point_coords_with_randomness

__all__ = ["PointSampling", "Subdivision"]


@dataclass(frozen=True)
class PointSampling:
    """Points to train on; arguments as for :func:`get_uncertain_point_coords_with_randomness`."""

    num_points: int
    oversample_ratio: float
    importance_sample_ratio: float

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise ConfigError(f"MODEL.POINT_HEAD.TRAIN_NUM_POINTS is {self.num_points}; set it to 1 or more.")
        if self.oversample_ratio < 1:
            raise ConfigError(
                f"MODEL.POINT_HEAD.OVERSAMPLE_RATIO is {self.oversample_ratio}, but at least as many candidates as "
                f"points are needed; set it to 1 or more."
            )
        if not 0 <= self.importance_sample_ratio <= 1:
            raise ConfigError(
                f"MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO is {self.importance_sample_ratio}; it is the part of the "
                f"points that is uncertain, from 0 to 1."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "PointSampling":
        head = cfg.MODEL.POINT_HEAD
        return cls(head.TRAIN_NUM_POINTS, head.OVERSAMPLE_RATIO, head.IMPORTANCE_SAMPLE_RATIO)

    @torch.no_grad()
    def __call__(self, coarse_logits: Tensor, uncertainty_func: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, P, 2) points of (N, C, H, W) coarse logits."""
        return get_uncertain_point_coords_with_randomness(
            coarse_logits, uncertainty_func, self.num_points, self.oversample_ratio, self.importance_sample_ratio
        )


@dataclass(frozen=True)
class Subdivision:
    """Double a prediction in size, again and again, and predict its most uncertain points anew each time.

    Attributes:
        num_steps: doublings; 0 leaves the prediction as it is.
        num_points: P, of each step.
    """

    num_steps: int
    num_points: int

    def __post_init__(self) -> None:
        if self.num_steps < 0 or self.num_points < 1:
            raise ConfigError(
                f"MODEL.POINT_HEAD.SUBDIVISION_STEPS is {self.num_steps} and SUBDIVISION_NUM_POINTS is "
                f"{self.num_points}; they must be at least 0 and 1."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Subdivision":
        return cls(cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS, cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS)

    def __call__(
        self, logits: Tensor, uncertainty_func: Callable[[Tensor], Tensor], predict: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """
        Args:
            logits: (N, C, H, W), the coarse prediction.
            uncertainty_func: from (N, C, h, w) logits to (N, 1, h, w), higher being less certain.
            predict: from (N, P, 2) points to their (N, C, P) logits.

        Returns:
            (N, C, H * 2 ** num_steps, W * 2 ** num_steps).
        """
        for factor in self._factors(num_cells=logits.shape[-2] * logits.shape[-1]):
            logits = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
            cells, points = get_uncertain_point_coords_on_grid(uncertainty_func(logits), self.num_points)
            refined = predict(points).to(logits.dtype)
            cells = cells[:, None].expand(-1, logits.shape[1], -1)  # (N, C, P)
            logits = logits.flatten(2).scatter(2, cells, refined).view_as(logits)
        return logits

    def _factors(self, num_cells: int) -> list[int]:
        """By how much each step upsamples.

        A step whose grid has no more than P cells predicts all of them, so that those before it would leave no trace:
        they are taken in one.
        """
        factors = [2] * self.num_steps
        while len(factors) > 1 and num_cells * (2 * factors[0]) ** 2 <= self.num_points:
            factors = [2 * factors[0], *factors[2:]]
        return factors
