"""MoCo v3: find the other view of an image among those of the batch, which a momentum encoder sees.

Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers"
(https://arxiv.org/abs/2104.02057).

Shapes: N samples per process, B of all processes, d channels of the embeddings, D of the transformer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.config import CfgNode, build_component, configurable
from detlib.modeling.backbone import BACKBONE_REGISTRY
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import build_loss
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread, ssl_parts
from detlib.modeling.self_supervised.distributed import concat_all_gather
from detlib.modeling.self_supervised.heads import checked_temperature, similarities
from detlib.modeling.self_supervised.momentum import MomentumEncoder, build_momentum_encoder
from detlib.modeling.self_supervised.vision_transformer import VisionTransformer
from detlib.utils import comm

__all__ = ["MoCoV3", "MoCoV3Head", "MoCoV3ViT"]


@META_ARCH_REGISTRY.register()
class MoCoV3(SelfSupModel):
    """A network with a predictor, its MoCoV3Head, and a momentum encoder without one, on a ResNet or a MoCoV3ViT."""

    num_views = 2
    compares_samples = True
    needs = ("NECK", "HEAD")

    @configurable
    def __init__(self, *, momentum_encoder: MomentumEncoder, **parts: Any) -> None:
        """
        Args:
            momentum_encoder: what makes the keys.
            parts: of :class:`SelfSupModel`.
        """
        super().__init__(**parts)
        self.momentum_encoder = momentum_encoder

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = ssl_parts(cfg, cls.needs)
        return {**parts, "momentum_encoder": build_momentum_encoder(cfg, parts["backbone"], parts["neck"])}

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: the sum of both directions (algorithm 1)."""
        q1, q2 = (self.neck(self.feature_map(view)) for view in views[:2])  # (N, d)
        log_spread(q1)
        self.momentum_encoder.update(self.backbone, self.neck)
        k1, k2 = (self.momentum_encoder(view, self.in_feature) for view in views[:2])  # (N, d)
        return {"loss": self.head(q1, k2) + self.head(q2, k1)}


@HEAD_REGISTRY.register()
class MoCoV3Head(nn.Module):
    """Predict the key of the same image among those of all images of the joint batch."""

    def __init__(self, in_channels: int, predictor: Any, temperature: float = 1.0, loss: Any = None) -> None:
        """
        Args:
            in_channels: d.
            predictor: see :class:`LatentPredictHead`.
            temperature: the similarities are divided by it.
            loss: of (N, B) logits and N labels; by default the cross entropy.
        """
        super().__init__()
        offers = {"in_channels": in_channels, "out_channels": in_channels, "with_avg_pool": False}
        self.predictor = build_component(NECK_REGISTRY, predictor, **offers)
        self.temperature = checked_temperature(temperature)
        self.loss_module = build_loss(loss or {"NAME": "CrossEntropyLoss"})

    def forward(self, embeddings: Tensor, keys: Tensor) -> Tensor:
        """The loss of embeddings (N, d) against the keys (N, d) of the other view."""
        queries = F.normalize(self.predictor(embeddings).float(), dim=1)
        keys = concat_all_gather(F.normalize(keys.float(), dim=1))  # (B, d)
        labels = comm.get_rank() * len(queries) + torch.arange(len(queries), device=queries.device)
        logits = similarities(queries, keys) / self.temperature  # (N, B)
        # The factor lets learning rates fit other temperatures, as gradients grow with 1 / temperature (algorithm 1).
        return 2 * self.temperature * self.loss_module(logits, labels)


@BACKBONE_REGISTRY.register()
class MoCoV3ViT(VisionTransformer):
    """A transformer whose patches are projected at random and never learn, which makes training stable (sec. 4.2)."""

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        stop_grad_conv1: bool = True,
        out_features: Sequence[str] = ("last_feat", "cls_token"),
        **kwargs: Any,
    ) -> None:
        """
        Args:
            embed_dim: D.
            stop_grad_conv1: whether the projection of the patches stays as it is.
            out_features: as those of :class:`VisionTransformer`, whose are the other arguments.
        """
        super().__init__(embed_dim=embed_dim, out_features=out_features, **kwargs)
        for block in self.blocks:
            # Xavier-uniform for queries, keys and values apart: the bounds of a D x D matrix.
            nn.init.uniform_(block.attn.qkv.weight, -((3 / embed_dim) ** 0.5), (3 / embed_dim) ** 0.5)
        nn.init.normal_(self.cls_token, std=1e-6)
        if stop_grad_conv1:
            self.patch_embed.requires_grad_(False)
            self.patch_embed.frozen_on_purpose = True
