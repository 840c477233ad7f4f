"""Clusters of features: k-means after whitening, and no cluster without members.

Shapes: n samples, C channels of their features, K clusters. Computed on the device of the features, without a Python
loop over clusters, save for the few that are empty. Where the device is a GPU, sums may differ in the last bits from
run to run, hence one process computes and the others get its result.
"""

import numpy as np
import torch
from torch import Tensor

from detlib.modeling.self_supervised.heads import full_precision
from detlib.utils.errors import ConfigError

__all__ = [
    "check_num_samples",
    "class_weights",
    "cluster_means",
    "fill_empty_clusters",
    "halve",
    "kmeans",
    "nearest",
    "pca_whiten",
]

MAX_DISTANCES = 2**25
"""How many distances are computed at a time: 128 MiB."""


@torch.no_grad()
def pca_whiten(features: Tensor, num_components: int, device: torch.device | str | None = None) -> Tensor:
    """The principal components of features (n, C), each divided by its standard deviation.

    Args:
        num_components: at most; there are no more than C.
        device: of the result and the computation, which takes the features in parts; by default their own.

    Returns:
        (n, num_components), the component with the largest variance first.
    """
    device = features.device if device is None else device
    parts = features.split(2**15)
    mean = sum(part.to(device).double().sum(dim=0) for part in parts) / len(features)  # (C,)
    scatter = sum(_gram(part.to(device).double() - mean) for part in parts)  # (C, C)
    variances, directions = torch.linalg.eigh(scatter / len(features))  # in ascending order
    variances = variances.flip(0)[:num_components]
    directions = directions.flip(1)[:, :num_components]
    # Directions in which features do not differ are noise of the arithmetic, which must not be magnified.
    scale = variances.clamp(min=variances[0].clamp(min=1e-12) * 1e-6).rsqrt()
    projection = directions * scale  # (C, num_components)
    return torch.cat([((part.to(device).double() - mean) @ projection).to(features.dtype) for part in parts])


def _gram(x: Tensor) -> Tensor:
    return x.T @ x


@torch.no_grad()
def kmeans(features: Tensor, num_clusters: int, num_iters: int = 20, seed: int = 0) -> Tensor:
    """The cluster (n,) of each of n features (n, C), by Euclidean distance; none is without members.

    Args:
        num_clusters: K.
        seed: of the choice of the first centroids.

    Raises:
        ConfigError: there are fewer samples than clusters.
    """
    check_num_samples(len(features), num_clusters)
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that the choice does not depend on the device
    chosen = torch.randperm(len(features), generator=generator)[:num_clusters]
    centroids = features[chosen.to(features.device)]  # (K, C)
    for _ in range(num_iters):
        labels, _ = fill_empty_clusters(features, nearest(features, centroids), num_clusters, generator)
        centroids = cluster_means(features, labels, num_clusters)
    return labels


def check_num_samples(num_samples: int, num_clusters: int) -> None:
    """Raise a ConfigError if there are samples, but fewer than clusters, some of which would stay without members."""
    if 0 < num_samples < num_clusters:
        raise ConfigError(
            f"{num_samples} samples cannot fill {num_clusters} clusters; set NUM_CLASSES of MODEL.SSL.HEAD to "
            f"{num_samples} or less"
        )


def nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid (n,) of each of n features (n, C), by Euclidean distance."""
    half_squares = centroids.square().sum(dim=1) / 2  # (K,)
    with full_precision(features):
        # |f - c|^2 is smallest where f c - |c|^2 / 2 is largest.
        parts = features.split(max(MAX_DISTANCES // len(centroids), 1))
        return torch.cat([(part @ centroids.T - half_squares).argmax(dim=1) for part in parts])


def cluster_means(features: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """The mean feature (K, C) of each cluster; 0 of those without members."""
    sums = features.new_zeros(num_clusters, features.shape[1]).index_add_(0, labels, features)
    counts = torch.bincount(labels, minlength=num_clusters)
    return sums / counts.clamp(min=1)[:, None]


def fill_empty_clusters(
    features: Tensor, labels: Tensor, num_clusters: int, generator: torch.Generator
) -> tuple[Tensor, list[int]]:
    """Give each cluster without members half of the one that is then the largest.

    Args:
        features: (n, C), of at least as many samples as clusters.
        labels: (n,) clusters.
        generator: see :func:`halve`.

    Returns:
        The new labels, and the clusters whose members changed.
    """
    counts = torch.bincount(labels, minlength=num_clusters).cpu().numpy()
    empty = np.flatnonzero(counts == 0)
    if len(empty) == 0:
        return labels, []
    # Sorted once, as features that are all the same leave nearly all clusters empty: no search for each.
    by_cluster = labels.argsort(stable=True).split(counts.tolist())
    members = {}  # (m,) of the clusters that changed
    for cluster in empty.tolist():
        largest = int(counts.argmax())
        own = members.get(largest, by_cluster[largest])
        moves = halve(features[own], generator)
        members[largest], members[cluster] = own[~moves], own[moves]
        counts[[largest, cluster]] = len(members[largest]), len(members[cluster])
    labels = labels.clone()
    for cluster, own in members.items():
        labels[own] = cluster
    return labels, sorted(members)


def halve(features: Tensor, generator: torch.Generator, num_iters: int = 20) -> Tensor:
    """Which of two or more samples are in the second of two clusters: (n,) bool, neither all nor none.

    Args:
        features: (n, C).
        generator: of the CPU; draws the halves where all features are the same.
    """
    first = (features - features.mean(dim=0)).norm(dim=1).argmax()
    second = (features - features[first]).norm(dim=1).argmax()
    labels, centroids = None, features[torch.stack([first, second])]
    for _ in range(num_iters):
        before, labels = labels, nearest(features, centroids)
        if before is not None and torch.equal(before, labels):
            break
        centroids = cluster_means(features, labels, 2)
    num_second = int(labels.sum())
    if 0 < num_second < len(features):
        return labels.bool()
    order = torch.randperm(len(features), generator=generator)
    return (order < len(features) // 2).to(features.device)


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights (K,) of the classes that sum to 1 and fall with the square root of the number of members.

    That of a class without members is large, and finite.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    weights = (counts + 1e-10).rsqrt()
    return weights / weights.sum()
