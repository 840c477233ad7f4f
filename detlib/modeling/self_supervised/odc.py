"""ODC: labels by clusters that follow the features in every step, instead of all at once between epochs.

Zhan et al., "Online Deep Clustering for Unsupervised Representation Learning" (https://arxiv.org/abs/2006.10645).
Shapes: N samples of a batch, B of those of all processes, n of the dataset, d channels of the embeddings, K clusters.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.config import configurable
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.self_supervised.clustering import (
    check_num_samples,
    class_weights,
    cluster_means,
    fill_empty_clusters,
    kmeans,
)
from detlib.modeling.self_supervised.distributed import broadcast, concat_all_gather
from detlib.modeling.self_supervised.heads import similarities
from detlib.modeling.self_supervised.memories import MEMORY_REGISTRY, last_of_equal
from detlib.modeling.self_supervised.necks import batch_norm_1d, mean_of_cells
from detlib.modeling.self_supervised.pseudo_labels import PseudoLabelModel
from detlib.utils import comm
from detlib.utils.accumulation import is_last_part
from detlib.utils.events import log_scalar

__all__ = ["ODC", "ODCMemory", "ODCNeck"]


@META_ARCH_REGISTRY.register()
class ODC(PseudoLabelModel):
    """Its memory is an ODCMemory, its neck an ODCNeck; the sampler should be a ReplacementSampler."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """
        Args:
            parts: of :class:`PseudoLabelModel`.
        """
        super().__init__(**parts)

    def remember(self, indices: Tensor, embeddings: Tensor) -> None:
        """Update the memory; the upkeep needs no gradient, hence it may come before the step of the optimizer.

        ``label_change`` in the log is the part of the samples that went to another cluster, in 0..1.
        """
        if not self.training:
            return
        log_scalar("label_change", self.memory_bank.update(indices, embeddings))
        if is_last_part():
            self.memory_bank.upkeep()


@NECK_REGISTRY.register()
class ODCNeck(nn.Module):
    """The mean of each channel, and two layers with batch norm and dropout between."""

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 512,
        out_channels: int = 256,
        dropout: float = 0.5,
        bn_momentum: float = 0.001,
        norm: str = "BN",
    ) -> None:
        """
        Args:
            bn_momentum: weight of a batch in the running statistics.
            norm: see :func:`batch_norm_1d`.
        """
        super().__init__()
        self.out_channels = out_channels
        self.fc0 = nn.Linear(in_channels, hid_channels)
        self.norm = batch_norm_1d(norm, hid_channels, momentum=bn_momentum, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(hid_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """From maps (N, C, h, w), or vectors (N, C), to (N, d)."""
        hidden = self.dropout(F.relu(self.norm(self.fc0(mean_of_cells(x)))))
        return F.relu(self.fc1(hidden))


@MEMORY_REGISTRY.register()
class ODCMemory(nn.Module):
    """An embedding and a cluster of each sample of the dataset, and the centroids (sec. 3.1).

    Attributes:
        feature_bank: (n, d), of length 1.
        label_bank: (n,), -1 before the first clustering.
        centroids: (K, d), means of the embeddings of their members, as of the last time they were computed.
        class_weights: (K,), the loss weights of sec. 3.3, which sum to 1.
        num_steps: so far.
    """

    def __init__(
        self,
        length: int,
        channels: int,
        num_classes: int,
        momentum: float = 0.5,
        min_cluster: int = 20,
        centroids_period: int = 10,
        num_iters: int = 20,
    ) -> None:
        """
        Args:
            length: n, the number of samples of the dataset; 0 where there is no loss.
            channels: d.
            num_classes: K.
            momentum: weight of a new embedding in the average.
            min_cluster: clusters with fewer members are dissolved.
            centroids_period: steps after which all centroids are computed anew.
            num_iters: of the first k-means.
        """
        super().__init__()
        check_num_samples(length, num_classes)
        self.num_classes = num_classes
        self.momentum = momentum
        self.min_cluster = min_cluster
        self.centroids_period = centroids_period
        self.num_iters = num_iters
        self.register_buffer("feature_bank", torch.zeros(length, channels))
        self.register_buffer("label_bank", torch.full((length,), -1))
        self.register_buffer("centroids", torch.zeros(num_classes, channels))
        self.register_buffer("class_weights", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("num_steps", torch.tensor(0))

    @torch.no_grad()
    def cluster(self, features: Tensor | None) -> None:
        """Fill the banks; arguments as for :meth:`PseudoLabelModel.cluster`."""
        if comm.is_main_process():
            self.feature_bank.copy_(F.normalize(features.to(self.feature_bank.device), dim=1))
            self.label_bank.copy_(kmeans(self.feature_bank, self.num_classes, self.num_iters))
            self.centroids.copy_(self._means())
        broadcast(self.feature_bank)
        self._share()

    @torch.no_grad()
    def update(self, indices: Tensor, embeddings: Tensor) -> Tensor:
        """Average embeddings (N, d) of each process into the bank, and take the samples to the centroids next to them.

        Of a sample that comes twice in the joint batch, the last embedding counts.

        Args:
            indices: (N,) places of the samples in the dataset.

        Returns:
            The part of the B samples whose cluster changed.
        """
        indices = concat_all_gather(indices)  # (B,)
        embeddings = F.normalize(concat_all_gather(embeddings.float()), dim=1)  # (B, d)
        new = torch.lerp(self.feature_bank[indices], embeddings[last_of_equal(indices)], self.momentum)
        new = F.normalize(new, dim=1)
        labels = similarities(new, self.centroids).argmax(dim=1)  # (B,)
        change = (labels != self.label_bank[indices]).float().mean()
        self.feature_bank[indices] = new
        self.label_bank[indices] = labels
        return change

    @torch.no_grad()
    def upkeep(self) -> None:
        """Dissolve small clusters, split large ones, move the centroids and weigh the clusters; once in each step."""
        self.num_steps += 1
        if comm.is_main_process():
            self._dissolve_small_clusters()
            self._fill_empty_clusters()
            if int(self.num_steps) % self.centroids_period == 0:
                self.centroids.copy_(self._means())
        self._share()

    def _dissolve_small_clusters(self) -> None:
        """Take the members of small clusters to the nearest of the others, if there are others."""
        is_small = torch.bincount(self.label_bank, minlength=self.num_classes) < self.min_cluster  # (K,)
        moves = is_small[self.label_bank].nonzero()[:, 0]
        large = (~is_small).nonzero()[:, 0]
        if len(large) > 0 and len(moves) > 0:
            self.label_bank[moves] = large[similarities(self.feature_bank[moves], self.centroids[large]).argmax(dim=1)]

    def _fill_empty_clusters(self) -> None:
        generator = torch.Generator().manual_seed(int(self.num_steps))
        labels, changed = fill_empty_clusters(self.feature_bank, self.label_bank, self.num_classes, generator)
        if changed:
            self.label_bank.copy_(labels)
            self.centroids[changed] = self._means()[changed]

    def _means(self) -> Tensor:
        return cluster_means(self.feature_bank, self.label_bank, self.num_classes)

    def _share(self) -> None:
        """Labels and centroids are those of the first process, and weights follow from them."""
        broadcast(self.label_bank, self.centroids)
        self.class_weights.copy_(class_weights(self.label_bank, self.num_classes))
