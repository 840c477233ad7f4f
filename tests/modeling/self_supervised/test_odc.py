import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detlib.modeling import build_model
from detlib.modeling.self_supervised import ODCMemory, ODCNeck
from detlib.modeling.self_supervised.clustering import kmeans
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage


@pytest.fixture
def odc(ssl_cfg):
    def make(seed=0):
        torch.manual_seed(seed)
        return build_model(
            ssl_cfg(
                "ODC",
                NECK={"NAME": "ODCNeck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8},
                HEAD={"NAME": "LinearClsHead", "NUM_CLASSES": 3},
                MEMORY={"NAME": "ODCMemory", "LENGTH": 12, "MIN_CLUSTER": 2},
            )
        )

    return make


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory(length=30, channels=4, num_classes=5, **options):
    bank = ODCMemory(length, channels, num_classes, **options)
    bank.cluster(normal(length, channels))
    return bank


def counts(bank):
    return torch.bincount(bank.label_bank, minlength=bank.num_classes)


def test_neck_has_the_published_number_of_parameters():
    neck = ODCNeck(2048, 512, 256)
    assert sum(p.numel() for p in neck.parameters()) == 1_180_416
    assert neck.norm.momentum == 0.001
    assert not neck.norm.affine
    assert isinstance(neck.dropout, nn.Dropout) and neck.dropout.p == 0.5
    assert neck.eval()(normal(2, 2048, 3, 3)).min() == 0  # It ends with a ReLU.


def test_loss_before_the_first_clustering_is_an_error(odc, samples):
    model = odc()
    assert model.memory_bank.label_bank.dtype == torch.int64
    assert model.memory_bank.label_bank.tolist() == [-1] * 12
    with pytest.raises(RuntimeError, match="ODC has no pseudo labels yet"):
        model(samples(4))


def test_first_clustering_fills_banks_and_centroids():
    x = normal(30, 4)
    bank = memory()
    torch.testing.assert_close(bank.feature_bank, F.normalize(x, dim=1))
    assert torch.equal(bank.label_bank, kmeans(F.normalize(x, dim=1), 5, 20))
    assert counts(bank).min() >= 1
    for cluster in range(5):
        mean = bank.feature_bank[bank.label_bank == cluster].mean(dim=0)
        torch.testing.assert_close(bank.centroids[cluster], mean)  # and not of length 1


def test_update_averages_features_and_takes_samples_to_the_most_similar_centroid():
    bank = memory(momentum=0.25)
    before, new = bank.feature_bank.clone(), normal(3, 4, seed=1)
    bank.update(torch.tensor([4, 0, 9]), new)
    expected = F.normalize(0.75 * before[[4, 0, 9]] + 0.25 * F.normalize(new, dim=1), dim=1)
    torch.testing.assert_close(bank.feature_bank[[4, 0, 9]], expected)
    assert torch.equal(bank.label_bank[[4, 0, 9]], (expected @ bank.centroids.T).argmax(dim=1))
    others = [i for i in range(30) if i not in (4, 0, 9)]
    assert torch.equal(bank.feature_bank[others], before[others])


def test_change_is_the_part_of_the_samples_with_another_label():
    bank = memory()
    bank.centroids.copy_(torch.eye(5)[:, :4])
    bank.feature_bank[:4] = torch.eye(4)
    bank.label_bank[:4] = torch.tensor([0, 1, 2, 0])  # The last one should be 3.
    assert bank.update(torch.arange(4), torch.eye(4)) == 0.25
    assert bank.label_bank[:4].tolist() == [0, 1, 2, 3]


def test_of_a_sample_that_comes_twice_the_last_embedding_counts():
    bank, once = memory(), memory()
    x = normal(2, 4, seed=1)
    bank.update(torch.tensor([3, 3]), x)
    once.update(torch.tensor([3]), x[1:])
    torch.testing.assert_close(bank.feature_bank, once.feature_bank)
    assert torch.equal(bank.label_bank, once.label_bank)


def test_rows_keep_length_1():
    bank = memory()
    for seed in range(3):
        bank.update(torch.arange(seed, 30, 2), normal(len(range(seed, 30, 2)), 4, seed=seed))
        bank.upkeep()
    torch.testing.assert_close(bank.feature_bank.norm(dim=1), torch.ones(30))


def test_small_cluster_is_dissolved_and_takes_half_of_the_largest():
    bank = ODCMemory(13, 2, 3, min_cluster=2)
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 1.4, 1.5, 1.6, 1.7, 3.0, 3.1, 3.2, 3.3, 2.9])
    bank.feature_bank.copy_(torch.stack([angles.cos(), angles.sin()], dim=1))
    bank.label_bank.copy_(torch.tensor([0] * 8 + [1] * 4 + [2]))  # The cluster 2 has one member, next to cluster 1.
    bank.centroids.copy_(bank._means())
    old = bank.centroids[1].clone()
    bank.upkeep()
    assert bank.label_bank[8:].tolist() == [1] * 5
    assert torch.equal(bank.centroids[1], old)  # until all are computed anew
    first, second = bank.label_bank[:4].tolist(), bank.label_bank[4:8].tolist()
    assert {tuple(first), tuple(second)} == {(0,) * 4, (2,) * 4}
    for cluster in (0, 2):
        mean = bank.feature_bank[bank.label_bank == cluster].mean(dim=0)
        torch.testing.assert_close(bank.centroids[cluster], mean)


def test_cluster_of_the_least_size_stays():
    bank = memory(length=8, num_classes=2, min_cluster=2)
    labels = torch.tensor([0] * 6 + [1] * 2)
    bank.label_bank.copy_(labels)
    bank.upkeep()
    assert torch.equal(bank.label_bank, labels)


def test_without_large_clusters_only_empty_ones_are_filled():
    bank = memory(length=12, num_classes=4, min_cluster=20)
    labels = torch.tensor([0] * 6 + [1] * 4 + [3] * 2)
    bank.label_bank.copy_(labels)
    bank.upkeep()
    assert torch.equal(bank.label_bank[6:], labels[6:])
    assert counts(bank)[2] >= 1
    assert counts(bank)[0] + counts(bank)[2] == 6


@pytest.mark.parametrize(("length", "num_classes", "min_cluster"), [(12, 12, 20), (30, 5, 20), (60, 5, 4), (30, 9, 3)])
def test_upkeep_leaves_no_cluster_empty_and_loses_no_sample(length, num_classes, min_cluster):
    bank = memory(length=length, num_classes=num_classes, min_cluster=min_cluster)
    for seed in range(12):
        bank.update(torch.arange(length), normal(length, 4, seed=seed) + 1)
        bank.upkeep()
        assert counts(bank).min() >= 1
        assert counts(bank).sum() == length
        assert bank.label_bank.min() >= 0


def test_all_centroids_are_computed_anew_every_few_steps():
    bank = memory(min_cluster=0, centroids_period=3)
    fresh = []
    for seed in range(6):
        bank.update(torch.arange(5), normal(5, 4, seed=seed))
        bank.upkeep()
        fresh.append(torch.allclose(bank.centroids, bank._means()))
    assert fresh[2] and fresh[5]
    assert not fresh[0] and not fresh[3]


def test_class_weights_follow_the_clusters_and_sum_to_1():
    bank = memory()
    bank.update(torch.arange(10), normal(10, 4, seed=1))
    bank.upkeep()
    roots = counts(bank).rsqrt()
    torch.testing.assert_close(bank.class_weights, roots / roots.sum())


def test_loss_is_the_weighted_mean_with_labels_from_before_the_step(odc, samples):
    model = odc()
    model.neck.dropout.p = 0.0
    model.cluster(normal(12, 8))
    batch = samples(4, sizes=[32])
    labels, weights = model.memory_bank.label_bank[:4].clone(), model.memory_bank.class_weights.clone()
    scores = model.head(model.embeddings(model.preprocess_views(batch)[0]))
    torch.testing.assert_close(model(batch)["loss"], F.cross_entropy(scores, labels, weight=weights))


def test_step_changes_the_rows_of_its_samples_only_and_is_logged(odc, samples):
    model = odc()
    model.cluster(normal(12, 8))
    before = model.memory_bank.feature_bank.clone()
    with EventStorage() as storage:
        model(samples(4))
        assert 0 <= storage.latest()["label_change"][0] <= 1
    changed = (model.memory_bank.feature_bank != before).any(dim=1)
    assert changed.tolist() == [True] * 4 + [False] * 8
    assert model.memory_bank.num_steps == 1


def test_measuring_a_loss_changes_nothing(odc, samples):
    model = odc().eval()
    model.cluster(normal(12, 8))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(samples(4), mode="loss")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_gradient_reaches_all_parameters_and_no_bank(odc, samples):
    model = odc()
    model.cluster(normal(12, 8))
    model(samples(8))["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.head.fc.weight.grad.abs().sum() > 0
    assert not model.memory_bank.feature_bank.requires_grad


def test_checkpoint_resumes_the_next_steps(odc, samples):
    model, resumed = odc(), odc(seed=1)
    model.cluster(normal(12, 8))
    model(samples(4))
    resumed.load_state_dict(model.state_dict())
    losses = []
    for each in (model, resumed):
        torch.manual_seed(2)  # for the dropout
        losses.append([each(samples(4, seed=seed))["loss"].detach() for seed in range(2)])
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    assert torch.equal(model.memory_bank.label_bank, resumed.memory_bank.label_bank)


def test_clustering_needs_features_without_dropout(odc, samples):
    model = odc().eval()
    (first,), (second,) = (model.clustering_features(samples(1, sizes=[32])) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_prediction_has_the_scores_of_the_clusters(odc, samples):
    predictions = odc().eval()(samples(4), mode="predict")
    assert [p["scores"].shape for p in predictions] == [(3,)] * 4


def test_more_clusters_than_samples_are_an_error():
    with pytest.raises(ConfigError, match="8 samples cannot fill 9 clusters"):
        ODCMemory(8, 4, 9)
