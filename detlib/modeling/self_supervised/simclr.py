"""SimCLR: find the other view of an image among all views of all images of the batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (https://arxiv.org/abs/2002.05709).
Shapes: N samples per process, B of all processes, d channels of the embeddings.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread
from detlib.modeling.self_supervised.distributed import gather_with_gradient
from detlib.modeling.self_supervised.heads import similarities
from detlib.utils import comm

__all__ = ["SimCLR", "pair_similarities"]


@META_ARCH_REGISTRY.register()
class SimCLR(SelfSupModel):
    """Both views through one network; the head is a ContrastiveHead."""

    num_views = 2
    compares_samples = True
    needs = ("NECK", "HEAD")

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: NT-Xent (eq. 1), averaged over the 2N views of this process."""
        # The views of an image stand one after the other, in rows 2i and 2i + 1: so they do in the joint batch, too.
        images = torch.stack(views[:2], dim=1).flatten(0, 1)  # (2N, 3, H, W)
        embeddings = F.normalize(self.neck(self.feature_map(images)).float(), dim=1)  # (2N, d)
        log_spread(embeddings)
        return {"loss": self.head(*pair_similarities(embeddings))}


def pair_similarities(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """The similarities of each view to the other one of its image, and to those of all other images.

    Args:
        embeddings: (2N, d), normalised, of this process; rows 2i and 2i + 1 are the views of an image.

    Returns:
        (2N, 1) and (2N, 2B - 2).
    """
    candidates = gather_with_gradient(embeddings)  # (2B, d)
    to_all = similarities(embeddings, candidates)  # (2N, 2B)
    rows = comm.get_rank() * len(embeddings) + torch.arange(len(embeddings), device=embeddings.device)
    other_view = rows ^ 1
    next_image = rows - rows % 2 + 2
    others = torch.arange(len(candidates) - 2, device=embeddings.device)
    negatives = (next_image[:, None] + others) % len(candidates)  # From the next image around to the one before.
    return to_all.gather(1, other_view[:, None]), to_all.gather(1, negatives)
