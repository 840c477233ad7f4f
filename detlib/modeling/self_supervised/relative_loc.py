"""RelativeLoc: where does a patch lie, seen from the one in the middle?

Doersch et al., "Unsupervised Visual Representation Learning by Context Prediction"
(https://arxiv.org/abs/1505.05192).
Shapes: N samples, C channels of the features, d of the embeddings.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import configurable
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread
from detlib.modeling.self_supervised.necks import batch_norm_1d, mean_of_cells
from detlib.utils.errors import DatasetError

__all__ = ["RelativeLoc", "RelativeLocNeck"]


@META_ARCH_REGISTRY.register()
class RelativeLoc(SelfSupModel):
    """Nine patches of each sample, that of the middle first; the head is a LinearClsHead of 8 classes.

    The split GridPatches of ``INPUT.VIEWS`` gives them.
    """

    num_views = 9
    needs = ("NECK", "HEAD")
    views_example = "{{AUGMENTATIONS: [...], SPLIT: {{NAME: GridPatches}}}}"

    @configurable
    def __init__(self, **parts: Any) -> None:
        """
        Args:
            parts: of :class:`SelfSupModel`.
        """
        super().__init__(**parts)

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: each neighbour and the middle are a pair, whose class is the neighbour's place, row by row."""
        embeddings = self.embeddings(views)  # (8N, d)
        log_spread(embeddings)
        places = torch.arange(len(views) - 1, device=embeddings.device).repeat(len(samples))  # (8N,)
        return {"loss": self.head.loss(embeddings, places)["loss_cls"]}

    def tensor(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The feature maps of the neighbours, those of one sample after the other; of a single view, its own."""
        return self.extract_feat(_neighbours(views) if len(views) > 1 else views[0])

    def predict(self, views: list[Tensor], samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each sample ``scores``, of its 8 pairs for the 8 places, before softmax: (8, 8)."""
        scores = self.head.scores(self.embeddings(views))  # (8N, 8)
        return [{"scores": of_sample} for of_sample in scores.view(len(samples), len(views) - 1, -1)]

    def embeddings(self, views: list[Tensor]) -> Tensor:
        """What the neck makes of the pairs, those of one sample after the other: (8N, d)."""
        num_pairs = len(views) - 1  # of a sample
        if num_pairs < 1:
            raise DatasetError(
                "RelativeLoc compares patches, but one view came; set SPLIT: {NAME: GridPatches} in INPUT.VIEWS"
            )
        neighbours = self.feature_map(_neighbours(views))  # (8N, C, h, w)
        if self.training:
            # The image is repeated, not its features, so that batch norm sees both halves of a pair equally often.
            middles = self.feature_map(views[0].repeat_interleave(num_pairs, dim=0))
        else:
            middles = self.feature_map(views[0]).repeat_interleave(num_pairs, dim=0)
        return self.neck(torch.cat([neighbours, middles], dim=1))


def _neighbours(views: list[Tensor]) -> Tensor:
    return torch.stack(views[1:], dim=1).flatten(end_dim=1)


@NECK_REGISTRY.register()
class RelativeLocNeck(nn.Module):
    """One hidden layer on the features of both patches of a pair."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 4096,
        dropout: float = 0.5,
        bn_momentum: float = 0.003,
        norm: str = "BN",
    ) -> None:
        """
        Args:
            in_channels: C, of one patch.
            out_channels: d.
            bn_momentum: weight of a batch in the running statistics.
            norm: see :func:`batch_norm_1d`.
        """
        super().__init__()
        self.out_channels = out_channels
        self.fc = nn.Linear(2 * in_channels, out_channels)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self.norm = batch_norm_1d(norm, out_channels, momentum=bn_momentum)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """From maps (n, 2C, h, w), or vectors (n, 2C), to (n, d)."""
        return self.dropout(self.relu(self.norm(self.fc(mean_of_cells(x)))))
