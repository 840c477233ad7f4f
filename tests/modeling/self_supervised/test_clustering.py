import math

import pytest
import torch
from torch.nn import functional as F

from detlib.modeling.self_supervised import clustering
from detlib.modeling.self_supervised.clustering import (
    class_weights,
    cluster_means,
    fill_empty_clusters,
    halve,
    kmeans,
    nearest,
    pca_whiten,
)
from detlib.utils.errors import ConfigError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator():
    return torch.Generator().manual_seed(0)


def blobs(counts, seed=0):
    """Features near the corners (0, 0), (10, 0), (20, 0), ..., and the corner of each."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return torch.stack([10.0 * labels, torch.zeros(len(labels))], dim=1) + 0.1 * normal(
        len(labels), 2, seed=seed
    ), labels


def same_partition(a, b):
    return torch.equal(a[:, None] == a, b[:, None] == b)


def test_whitened_features_have_mean_0_and_covariance_1():
    x = normal(500, 6) @ normal(6, 6, seed=1) + 3
    white = pca_whiten(x, 4)
    assert white.shape == (500, 4)
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(4), atol=1e-3, rtol=0)


def test_components_are_those_of_the_largest_variance():
    x = normal(2000, 3) * torch.tensor([1.0, 10.0, 3.0])
    white = pca_whiten(x, 2)
    centred = x - x.mean(dim=0)
    for component, channel in ((0, 1), (1, 2)):
        assert F.cosine_similarity(white[:, component], centred[:, channel], dim=0).abs() > 0.99


def test_whitened_normalised_features_have_length_1():
    rows = F.normalize(pca_whiten(normal(50, 8), 5), dim=1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(50))


def test_directions_without_variance_are_not_magnified():
    x = torch.cat([normal(100, 2), torch.full((100, 3), 7.0)], dim=1)
    white = pca_whiten(x, 5)
    assert white.isfinite().all()
    assert white[:, 2:].abs().max() < 0.01
    assert pca_whiten(torch.full((4, 3), 2.0), 2).isfinite().all()


def test_rounding_errors_are_not_magnified():
    x = normal(100, 2)
    x = torch.cat([x, x.sum(dim=1, keepdim=True) / 3], dim=1)  # but for rounding, a plane
    white = pca_whiten(x, 3)
    assert white[:, 2].abs().max() < 0.01 < 1 < white[:, 1].abs().max()


def test_there_are_no_more_components_than_channels():
    assert pca_whiten(normal(20, 3), 256).shape == (20, 3)


def test_nearest_is_by_euclidean_distance(monkeypatch):
    features, centroids = normal(40, 3), 3 * normal(7, 3, seed=1)
    expected = torch.cdist(features, centroids).argmin(dim=1)
    assert torch.equal(nearest(features, centroids), expected)
    monkeypatch.setattr(clustering, "MAX_DISTANCES", 21)  # 3 rows at a time
    assert torch.equal(nearest(features, centroids), expected)


def test_nearest_is_not_rounded_under_autocast():
    features, centroids = normal(2000, 16), normal(50, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = nearest(features, centroids)
    assert torch.equal(under_autocast, torch.cdist(features, centroids).argmin(dim=1))


def test_cluster_means_are_those_of_the_members():
    features = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    means = cluster_means(features, torch.tensor([2, 2, 0]), 3)
    assert means.tolist() == [[5.0, 5.0], [0.0, 0.0], [2.0, 1.0]]


def test_kmeans_finds_blobs():
    features, labels = blobs([30, 50, 20])
    assert any(same_partition(kmeans(features, 3, seed=seed), labels) for seed in range(3))


def test_kmeans_lowers_the_distances_to_the_centroids():
    features = normal(300, 4)

    def distance(num_iters):
        labels = kmeans(features, 10, num_iters)
        return (features - cluster_means(features, labels, 10)[labels]).square().sum()

    assert distance(20) < distance(5) < distance(1)


def test_kmeans_is_the_same_under_a_seed_and_differs_between_seeds():
    features = normal(200, 4)
    torch.manual_seed(0)
    first = kmeans(features, 10, seed=3)
    torch.manual_seed(1)
    assert torch.equal(kmeans(features, 10, seed=3), first)
    assert not same_partition(kmeans(features, 10, seed=4), first)


@pytest.mark.parametrize("num_different", [1, 3, 12])
def test_kmeans_leaves_no_cluster_without_members(num_different):
    features = normal(num_different, 4).repeat(12 // num_different, 1)
    counts = torch.bincount(kmeans(features, 8), minlength=8)
    assert len(counts) == 8
    assert counts.min() >= 1
    assert counts.sum() == 12


def test_as_many_clusters_as_samples_have_one_each():
    assert sorted(kmeans(torch.zeros(5, 2), 5).tolist()) == [0, 1, 2, 3, 4]


def test_fewer_samples_than_clusters_are_an_error():
    with pytest.raises(ConfigError, match=r"4 samples cannot fill 5 clusters; set NUM_CLASSES of MODEL.SSL.HEAD to 4"):
        kmeans(normal(4, 2), 5)


def test_halves_are_the_two_blobs():
    features, labels = blobs([6, 3])
    assert same_partition(halve(features, generator()).long(), labels)


@pytest.mark.parametrize("n", [2, 7])
def test_halves_of_equal_features_are_equally_large(n):
    assert halve(torch.ones(n, 3), generator()).sum() == n // 2


def test_empty_cluster_takes_half_of_the_largest():
    features, blob = blobs([5, 4, 2])
    labels = torch.where(blob < 2, 3, 1)  # cluster 3 has the first two blobs; 0 and 2 have none
    filled, changed = fill_empty_clusters(features, labels, 4, generator())
    assert torch.bincount(filled, minlength=4).min() >= 1
    assert 3 in changed and 0 in changed and 2 in changed and 1 not in changed
    assert torch.equal(filled[blob == 2], torch.tensor([1, 1]))
    # The first split separates the two blobs, the second one divides the larger of them.
    assert not set(filled[blob == 0].tolist()) & set(filled[blob == 1].tolist())


def test_clusters_that_all_have_members_stay():
    labels = torch.tensor([0, 1, 2, 2])
    filled, changed = fill_empty_clusters(normal(4, 2), labels, 3, generator())
    assert torch.equal(filled, labels)
    assert changed == []


def test_class_weights_sum_to_1_and_fall_with_the_root_of_the_members():
    weights = class_weights(torch.tensor([0, 1, 1, 1, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1 / 3]))  # 1 : 1 / sqrt(4)


def test_class_without_members_has_a_large_and_finite_weight():
    weights = class_weights(torch.tensor([0, 0]), 2)
    assert weights.isfinite().all()
    assert weights.sum().item() == pytest.approx(1)
    assert (weights[1] / weights[0]).item() == pytest.approx(math.sqrt(2) * 1e5, rel=1e-4)
