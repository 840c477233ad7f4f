"""What DeepCluster and ODC share: a classifier that learns the clusters of its own features.

Shapes: N samples of a batch, n of the dataset, C channels of the features, K clusters.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, build_component
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread, sample_indices, ssl_parts
from detlib.modeling.self_supervised.memories import MEMORY_REGISTRY
from detlib.modeling.self_supervised.necks import mean_of_cells

__all__ = ["PseudoLabelModel"]


class PseudoLabelModel(SelfSupModel):
    """One view of each sample, whose class is the cluster that its memory says; the head is a LinearClsHead.

    The memory is of MEMORY_REGISTRY, built with ``channels``, ``num_classes`` and ``length`` offered. It has the
    buffers ``label_bank``, (n,) clusters or -1 before the first clustering, and ``class_weights`` (K,), and a method
    ``cluster(features)``. The hook :class:`~detlib.engine.clustering_hook.ClusteringHook` calls that of the model.

    Attributes:
        clusters_every_epoch: whether the hook clusters before each epoch, or once, before the first.
    """

    needs = ("HEAD", "MEMORY")
    clusters_every_epoch = False

    def __init__(self, *, memory_bank: nn.Module, **parts: Any) -> None:
        """
        Args:
            memory_bank: of all samples of the dataset.
            parts: of :class:`SelfSupModel`.
        """
        super().__init__(**parts)
        self.memory_bank = memory_bank
        self._has_labels = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = ssl_parts(cfg, cls.needs)
        fc = parts["head"].fc
        offers = {"channels": fc.in_features, "num_classes": fc.out_features, "length": 0}
        return {**parts, "memory_bank": build_component(MEMORY_REGISTRY, cfg.MODEL.SSL.MEMORY, **offers)}

    @property
    def is_clustered(self) -> bool:
        """Whether there are labels, from a clustering or from a checkpoint."""
        labels = self.memory_bank.label_bank
        return len(labels) > 0 and bool((labels >= 0).all())

    def embeddings(self, images: Tensor) -> Tensor:
        """What the head takes, (N, C), of normalised images (N, 3, H, W)."""
        features = self.feature_map(images)
        return mean_of_cells(features if self.neck is None else self.neck(features))

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: the cross entropy of the clusters, the weighted mean over the samples.

        Raises:
            RuntimeError: there was no clustering yet.
        """
        indices = sample_indices(samples, len(self.memory_bank.label_bank), self.device)  # (N,)
        labels = self.memory_bank.label_bank[indices]
        self._check_clustered()
        embeddings = self.embeddings(views[0])  # (N, C)
        log_spread(embeddings)
        loss = self.head.loss(embeddings, labels, self.memory_bank.class_weights[labels])["loss_cls"]
        self.remember(indices, embeddings.detach())
        return {"loss": loss}

    def remember(self, indices: Tensor, embeddings: Tensor) -> None:
        """Called with what a loss was computed of: places (N,) in the dataset, embeddings (N, C)."""

    def predict(self, views: list[Tensor], samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each sample ``scores`` of the clusters, before softmax: (K,)."""
        return [{"scores": scores} for scores in self.head.scores(self.embeddings(views[0]))]

    @torch.no_grad()
    def clustering_features(self, samples: list[dict[str, Any]]) -> Tensor:
        """What is clustered, (N, C), of samples with one view each; to be called in evaluation mode."""
        return self.embeddings(self.preprocess_views(samples)[0]).float()

    def cluster(self, features: Tensor | None) -> list[nn.Parameter]:
        """Find the labels of all samples; to be called in all processes.

        Args:
            features: (n, C), in the order of the dataset; in the first process only.

        Returns:
            The parameters that were drawn anew, of which an optimizer should forget what it knows.
        """
        self.memory_bank.cluster(features)
        return []

    def _check_clustered(self) -> None:
        # Once there are labels there always are; looking again in each step would wait for the GPU.
        self._has_labels = self._has_labels or self.is_clustered
        if not self._has_labels:
            raise RuntimeError(
                f"{type(self).__name__} has no pseudo labels yet; let the hook ClusteringHook cluster before training, "
                f"as DefaultTrainer does, or call cluster(features)"
            )
