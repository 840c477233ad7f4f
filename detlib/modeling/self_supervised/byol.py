"""BYOL: predict what a slowly moving copy of the network makes of the other view, without negatives.

Grill et al., "Bootstrap Your Own Latent" (https://arxiv.org/abs/2006.07733).
Shapes: N samples, d channels of the embeddings.
"""

from typing import Any

from torch import Tensor

from detlib.config import CfgNode, configurable
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread, ssl_parts
from detlib.modeling.self_supervised.momentum import MomentumEncoder, build_momentum_encoder

__all__ = ["BYOL"]


@META_ARCH_REGISTRY.register()
class BYOL(SelfSupModel):
    """An online network with a predictor, its LatentPredictHead, and a target network without one."""

    num_views = 2
    needs = ("NECK", "HEAD")

    @configurable
    def __init__(self, *, target_net: MomentumEncoder, **parts: Any) -> None:
        """
        Args:
            target_net: what makes the targets.
            parts: of :class:`SelfSupModel`.
        """
        super().__init__(**parts)
        self.target_net = target_net

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = ssl_parts(cfg, cls.needs)
        return {**parts, "target_net": build_momentum_encoder(cfg, parts["backbone"], parts["neck"])}

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: the sum of both directions (eq. 2), in [0, 8] if each is ``2 - 2 cos``."""
        self.target_net.update(self.backbone, self.neck)
        z1, z2 = (self.neck(self.feature_map(view)) for view in views[:2])  # (N, d)
        target1, target2 = (self.target_net(view, self.in_feature) for view in views[:2])  # (N, d)
        log_spread(z1)
        return {"loss": self.head(z1, target2) + self.head(z2, target1)}
