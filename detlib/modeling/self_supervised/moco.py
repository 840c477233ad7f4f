"""MoCo, versions 1 and 2: tell the other view of an image from a queue of other images.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning" (https://arxiv.org/abs/1911.05722), and
Chen et al., "Improved Baselines with Momentum Contrastive Learning" (https://arxiv.org/abs/2003.04297). The versions
differ in neck, temperature and views, so that both are configs of one class.

Shapes: N samples, d channels of the embeddings, K keys in the queue.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from detlib.config import CfgNode, configurable
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread, ssl_parts
from detlib.modeling.self_supervised.distributed import shuffle, unshuffle
from detlib.modeling.self_supervised.memories import KeyQueue
from detlib.modeling.self_supervised.momentum import MomentumEncoder, build_momentum_encoder

__all__ = ["MoCo"]


@META_ARCH_REGISTRY.register()
class MoCo(SelfSupModel):
    """Queries from the network, keys from its momentum encoder; the head is a ContrastiveHead."""

    num_views = 2
    needs = ("NECK", "HEAD")

    @configurable
    def __init__(self, *, encoder_k: MomentumEncoder, queue: KeyQueue, **parts: Any) -> None:
        """
        Args:
            encoder_k: what makes the keys.
            queue: the negatives.
            parts: of :class:`SelfSupModel`.
        """
        super().__init__(**parts)
        self.encoder_k = encoder_k
        self.queue = queue

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = ssl_parts(cfg, cls.needs)
        return {
            **parts,
            "encoder_k": build_momentum_encoder(cfg, parts["backbone"], parts["neck"]),
            "queue": KeyQueue(cfg.MODEL.SSL.QUEUE_LEN, parts["neck"].out_channels),
        }

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: that of the queries of the first view and the keys of the second (eq. 1)."""
        queries = F.normalize(self.neck(self.feature_map(views[0])).float(), dim=1)  # (N, d)
        log_spread(queries)
        self.encoder_k.update(self.backbone, self.neck)
        keys = self.encode_keys(views[1])
        loss = self.head((queries * keys).sum(dim=1, keepdim=True), self.queue.similarities(queries))
        self.queue.enqueue(keys)
        return {"loss": loss}

    def encode_keys(self, images: Tensor) -> Tensor:
        """The keys (N, d) of normalised images (N, 3, H, W), without gradient."""
        images, order = shuffle(images)
        keys = F.normalize(self.encoder_k(images, self.in_feature).float(), dim=1)
        return unshuffle(keys, order)
