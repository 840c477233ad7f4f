"""SimSiam: predict one view's embedding from the other's, with nothing but a stop-gradient against collapse.

Chen and He, "Exploring Simple Siamese Representation Learning" (https://arxiv.org/abs/2011.10566).
Shapes: N samples, d channels of the embeddings.
"""

from typing import Any

from torch import Tensor

from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread

__all__ = ["SimSiam"]


@META_ARCH_REGISTRY.register()
class SimSiam(SelfSupModel):
    """Two views through one network; its head is a LatentPredictHead."""

    num_views = 2
    needs = ("NECK", "HEAD")

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``, in [-1, 1]: half of each direction (eq. 2). It is -1 when collapsed, too: see embedding_spread."""
        z1, z2 = (self.neck(self.feature_map(view)) for view in views[:2])  # (N, d)
        log_spread(z1)
        return {"loss": (self.head(z1, z2) + self.head(z2, z1)) / 2}
