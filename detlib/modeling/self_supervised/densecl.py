"""DenseCL: MoCo v2 for whole images, and at the same time for the cells of their feature maps.

Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training" (https://arxiv.org/abs/2011.09157).
Shapes: N samples, C channels of the backbone's map, d of the embeddings, S cells of a map, K keys in each queue.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.config import CfgNode, configurable
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread, ssl_parts
from detlib.modeling.self_supervised.distributed import shuffle, unshuffle
from detlib.modeling.self_supervised.heads import ContrastiveHead, full_precision
from detlib.modeling.self_supervised.memories import KeyQueue
from detlib.modeling.self_supervised.momentum import MomentumEncoder, build_momentum_encoder
from detlib.modeling.self_supervised.necks import mean_of_cells
from detlib.utils.accumulation import is_last_part

__all__ = ["DenseCL", "DenseCLHead", "DenseCLNeck", "matching_cells"]


class Encoded(NamedTuple):
    """What is made of N images, each normalised along channels."""

    embedding: Tensor  # (N, d)
    grid: Tensor  # (N, d, S): the embeddings of the cells
    pooled: Tensor  # (N, d): their mean
    cells: Tensor  # (N, C, S): the cells of the backbone's map


@META_ARCH_REGISTRY.register()
class DenseCL(SelfSupModel):
    """A DenseCLNeck, whose two outputs have a queue each, and a DenseCLHead."""

    num_views = 2
    needs = ("NECK", "HEAD")

    @configurable
    def __init__(self, *, encoder_k: MomentumEncoder, queue: KeyQueue, queue2: KeyQueue, **parts: Any) -> None:
        """
        Args:
            encoder_k: what makes the keys.
            queue: the negatives of images.
            queue2: those of cells: the pooled ones of earlier images.
            parts: of :class:`SelfSupModel`.
        """
        super().__init__(**parts)
        self.encoder_k = encoder_k
        self.queue = queue
        self.queue2 = queue2

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = ssl_parts(cfg, cls.needs)
        return {
            **parts,
            "encoder_k": build_momentum_encoder(cfg, parts["backbone"], parts["neck"]),
            "queue": KeyQueue(cfg.MODEL.SSL.QUEUE_LEN, parts["neck"].out_channels),
            "queue2": KeyQueue(cfg.MODEL.SSL.QUEUE_LEN, parts["neck"].out_channels),
        }

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss_single`` of images and ``loss_dense`` of cells, weighted (eq. 3)."""
        query = _encode(self.neck, self.feature_map(views[0]))
        log_spread(query.embedding)
        self.encoder_k.update(self.backbone, self.neck)
        key = self.encode_keys(views[1])
        match = matching_cells(query.cells, key.cells)  # (N, S)
        matched = key.grid.gather(2, match[:, None].expand_as(query.grid))  # (N, d, S)
        losses = self.head(
            single=_logits(query.embedding, key.embedding, self.queue),
            dense=_logits(_rows(query.grid), _rows(matched), self.queue2),
        )
        self.queue.enqueue(key.embedding)
        self.queue2.enqueue(key.pooled)
        return losses

    @torch.no_grad()
    def encode_keys(self, images: Tensor) -> Encoded:
        """What the momentum encoder makes of normalised images (N, 3, H, W)."""
        images, order = shuffle(images)
        encoded = _encode(self.encoder_k.neck, self.encoder_k.feature_map(images, self.in_feature))
        return Encoded(*(unshuffle(x, order) for x in encoded))

    def predict(self, views: list[Tensor], samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each sample ``grid``, the (C, S) cells of the backbone's map of its first view, normalised."""
        cells = F.normalize(self.neck.cells(self.feature_map(views[0])).float(), dim=1)
        return [{"grid": grid} for grid in cells]


def _encode(neck: nn.Module, features: Tensor) -> Encoded:
    return Encoded(*(F.normalize(x.float(), dim=1) for x in (*neck(features), neck.cells(features))))


def _rows(grid: Tensor) -> Tensor:
    return grid.transpose(1, 2).flatten(0, 1)  # (N * S, d)


def _logits(queries: Tensor, keys: Tensor, queue: KeyQueue) -> tuple[Tensor, Tensor]:
    """Similarities to positives (M, 1) and to negatives (M, K), of queries and keys (M, d)."""
    return (queries * keys).sum(dim=1, keepdim=True), queue.similarities(queries)


@torch.no_grad()
def matching_cells(query_cells: Tensor, key_cells: Tensor) -> Tensor:
    """For each cell of the queries the most similar one of the same image's keys: (N, S) (eq. 4).

    Args:
        query_cells: (N, C, S), normalised along channels.
        key_cells: likewise.
    """
    with full_precision(query_cells):
        return torch.bmm(query_cells.transpose(1, 2), key_cells).argmax(dim=2)


@NECK_REGISTRY.register()
class DenseCLNeck(nn.Module):
    """Two layers for the mean of the cells, and two for each cell."""

    def __init__(
        self, in_channels: int, hid_channels: int = 2048, out_channels: int = 128, num_grid: int | None = None
    ) -> None:
        """
        Args:
            num_grid: average maps to so many cells a side first; by default they stay as they are.
        """
        super().__init__()
        self.out_channels = out_channels
        self.num_grid = num_grid
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hid_channels), nn.ReLU(inplace=True), nn.Linear(hid_channels, out_channels)
        )
        self.mlp2 = nn.Sequential(
            nn.Conv2d(in_channels, hid_channels, 1), nn.ReLU(inplace=True), nn.Conv2d(hid_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From (N, C, h, w) to the embeddings of images (N, d), of cells (N, d, S), and the mean of those (N, d)."""
        grid = self.mlp2(self._pooled(x)).flatten(2)
        return self.mlp(mean_of_cells(x)), grid, grid.mean(dim=2)

    def cells(self, x: Tensor) -> Tensor:
        """The cells (N, C, S) of a map (N, C, h, w) that the embeddings are of."""
        return self._pooled(x).flatten(2)

    def _pooled(self, x: Tensor) -> Tensor:
        return x if self.num_grid is None else F.adaptive_avg_pool2d(x, self.num_grid)


@HEAD_REGISTRY.register()
class DenseCLHead(nn.Module):
    """A ContrastiveHead for images and for cells.

    Attributes:
        num_steps: training steps so far.
    """

    def __init__(
        self, temperature: float = 0.2, dense_weight: float = 0.5, warmup_iters: int = 1000, loss: Any = None
    ) -> None:
        """
        Args:
            temperature: see :class:`ContrastiveHead`; loss too.
            dense_weight: lambda, the weight of the cells; that of the images is the rest of 1.
            warmup_iters: steps in which only the images count, as the cells' matches are random at first.
        """
        super().__init__()
        self.contrast = ContrastiveHead(temperature, loss)
        self.dense_weight = dense_weight
        self.warmup_iters = warmup_iters
        self.register_buffer("num_steps", torch.tensor(0))

    def forward(self, single: tuple[Tensor, Tensor], dense: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The weighted losses of similarities to positives and negatives, of images and of cells."""
        weight = torch.where(self.num_steps < self.warmup_iters, 0.0, self.dense_weight)
        if self.training and is_last_part():
            self.num_steps += 1
        return {
            "loss_single": (1 - weight) * self.contrast(*single),
            "loss_dense": weight * self.contrast(*dense),
        }
