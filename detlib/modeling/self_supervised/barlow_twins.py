"""Barlow Twins: make the cross-correlation of the embeddings of two views the identity matrix.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction" (https://arxiv.org/abs/2103.03230).
Shapes: N samples per process, B of all processes, d channels of the embeddings.
"""

from typing import Any

from torch import Tensor, nn

from detlib.config import configurable
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import LOSS_REGISTRY, build_loss
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread
from detlib.modeling.self_supervised.distributed import sum_with_gradient
from detlib.modeling.self_supervised.heads import full_precision
from detlib.modeling.self_supervised.necks import batch_norm_1d
from detlib.utils import comm

__all__ = ["BarlowTwins", "CrossCorrelationLoss", "LatentCrossCorrelationHead"]


@META_ARCH_REGISTRY.register()
class BarlowTwins(SelfSupModel):
    """Two views through one network; the head is a LatentCrossCorrelationHead."""

    num_views = 2
    compares_samples = True
    needs = ("NECK", "HEAD")

    @configurable
    def __init__(self, **parts: Any) -> None:
        """
        Args:
            parts: of :class:`SelfSupModel`.
        """
        super().__init__(**parts)
        for module in self.neck.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``, at least 0 (eq. 1)."""
        z1, z2 = (self.neck(self.feature_map(view)) for view in views[:2])  # (N, d)
        log_spread(z1)
        return {"loss": self.head(z1, z2)}


@HEAD_REGISTRY.register()
class LatentCrossCorrelationHead(nn.Module):
    """The correlation of each channel of one embedding with each of the other, over the joint batch (eq. 2)."""

    def __init__(self, in_channels: int, norm: str = "BN", loss: Any = None) -> None:
        """
        Args:
            in_channels: d.
            norm: what makes means 0 and variances 1: "BN", or "SyncBN", which several processes need for a true
                correlation.
            loss: of the matrix (d, d); by default CrossCorrelationLoss.
        """
        super().__init__()
        self.bn = batch_norm_1d(norm, in_channels, affine=False)
        self.loss_module = build_loss(loss or {"NAME": "CrossCorrelationLoss"})

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of embeddings (N, d) of two views."""
        with full_precision(z1):
            products = self.bn(z1.float()).T @ self.bn(z2.float())  # (d, d)
        return self.loss_module(sum_with_gradient(products / (len(z1) * comm.get_world_size())))


@LOSS_REGISTRY.register()
class CrossCorrelationLoss(nn.Module):
    """``sum_i (1 - C_ii)^2 + w sum_{i != j} C_ij^2`` (eq. 1)."""

    def __init__(self, off_diagonal_weight: float = 0.0051) -> None:
        """
        Args:
            off_diagonal_weight: w, the paper's lambda.
        """
        super().__init__()
        self.off_diagonal_weight = off_diagonal_weight

    def forward(self, correlation: Tensor) -> Tensor:
        """
        Args:
            correlation: C, (d, d).
        """
        d = len(correlation)
        # Without its last entry the matrix falls into rows of d + 1, each of which begins with one of the diagonal.
        off_diagonal = correlation.flatten()[:-1].view(d - 1, d + 1)[:, 1:]
        on_diagonal = correlation.diagonal()
        return (1 - on_diagonal).square().sum() + self.off_diagonal_weight * off_diagonal.square().sum()
