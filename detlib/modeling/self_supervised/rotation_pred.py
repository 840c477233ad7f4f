"""RotationPred: by which quarter turns was the image turned?

Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations" (https://arxiv.org/abs/1803.07728).
Shapes: N samples, C channels of the features.
"""

from typing import Any

import torch
from torch import Tensor

from detlib.config import configurable
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread
from detlib.modeling.self_supervised.necks import mean_of_cells

__all__ = ["RotationPred"]


@META_ARCH_REGISTRY.register()
class RotationPred(SelfSupModel):
    """One view of each sample, turned by 0, 90, 180 and 270 degrees; the head is a LinearClsHead of 4 classes.

    The split QuarterTurns of ``INPUT.VIEWS`` gives the four, counter-clockwise.
    """

    num_views = 4
    needs = ("HEAD",)
    views_example = "{{AUGMENTATIONS: [...], SPLIT: {{NAME: QuarterTurns}}}}"

    @configurable
    def __init__(self, **parts: Any) -> None:
        """
        Args:
            parts: of :class:`SelfSupModel`; without a neck, the head takes the mean of each channel.
        """
        super().__init__(**parts)

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: the class of a view is its place, the number of quarter turns (eq. 3)."""
        embeddings = self.embeddings(views)  # (4N, C)
        log_spread(embeddings)
        turns = torch.arange(4, device=embeddings.device).repeat(len(samples))  # (4N,)
        return {"loss": self.head.loss(embeddings, turns)["loss_cls"]}

    def tensor(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The feature maps of all views, those of one sample after the other."""
        return self.extract_feat(in_order_of_samples(views))

    def predict(self, views: list[Tensor], samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each sample ``scores``, of its V views for the 4 turns, before softmax: (V, 4)."""
        scores = self.head.scores(self.embeddings(views))  # (VN, 4)
        return [{"scores": of_sample} for of_sample in scores.view(len(samples), len(views), -1)]

    def embeddings(self, views: list[Tensor]) -> Tensor:
        """What the head takes of V views, (VN, C)."""
        features = self.feature_map(in_order_of_samples(views))
        return mean_of_cells(features if self.neck is None else self.neck(features))


def in_order_of_samples(views: list[Tensor]) -> Tensor:
    """V batches (N, 3, H, W) as one, (NV, 3, H, W), in which the views of a sample follow one another."""
    return torch.stack(views, dim=1).flatten(end_dim=1)
