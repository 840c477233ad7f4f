import pytest
import torch
from torch.nn import functional as F

from detlib.config import get_cfg
from detlib.modeling import build_backbone, build_model
from detlib.modeling.self_supervised import PseudoLabels
from detlib.modeling.self_supervised.clustering import kmeans, pca_whiten
from detlib.modeling.self_supervised.deepcluster import sobel
from detlib.utils.errors import ConfigError, DatasetError


@pytest.fixture
def deepcluster(ssl_cfg):
    def make(seed=0, **memory):
        torch.manual_seed(seed)
        return build_model(
            ssl_cfg(
                "DeepCluster",
                NECK={"NAME": "AvgPool2dNeck"},
                HEAD={"NAME": "LinearClsHead", "NUM_CLASSES": 3},
                MEMORY={"NAME": "PseudoLabels", "LENGTH": 8, **memory},
            )
        )

    return make


def features(seed=0):
    return torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))


def test_loss_before_the_first_clustering_is_an_error(deepcluster, samples):
    model = deepcluster()
    assert model.memory_bank.label_bank.tolist() == [-1] * 8
    assert not model.is_clustered
    with pytest.raises(RuntimeError, match="DeepCluster has no pseudo labels yet; let the hook ClusteringHook cluster"):
        model(samples(4))


def test_clustering_gives_every_sample_a_label_and_every_cluster_a_sample(deepcluster):
    model = deepcluster()
    model.cluster(features())
    assert model.is_clustered
    assert set(model.memory_bank.label_bank.tolist()) == {0, 1, 2}
    assert model.memory_bank.label_bank.dtype == torch.int64


def test_clustering_draws_the_head_anew_and_leaves_the_backbone(deepcluster):
    model = deepcluster()
    model.head.fc.bias.data.fill_(1.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    renewed = model.cluster(features())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in changed if not key.startswith("memory_bank.")} == {"head.fc.weight", "head.fc.bias"}
    assert set(renewed) == set(model.head.parameters())
    assert (model.head.fc.bias == 0).all()
    assert 0.005 < model.head.fc.weight.std() < 0.02


def test_clustering_leaves_the_model_in_training_mode(deepcluster):
    model = deepcluster()
    model.cluster(features())
    assert all(module.training for module in model.modules())


def test_labels_are_taken_by_the_place_in_the_dataset(deepcluster, samples):
    model = deepcluster().eval()
    model.cluster(features())
    batch = samples(3, sizes=[32])
    for sample, index in zip(batch, (6, 0, 3)):
        sample["sample_idx"] = index
    scores = torch.stack([p["scores"] for p in model(batch, mode="predict")])
    expected = F.cross_entropy(scores, model.memory_bank.label_bank[[6, 0, 3]])
    torch.testing.assert_close(model(batch, mode="loss")["loss"], expected)


def test_prediction_has_the_scores_of_the_clusters(deepcluster, samples):
    predictions = deepcluster().eval()(samples(4), mode="predict")
    assert [p["scores"].shape for p in predictions] == [(3,)] * 4


def test_weighted_loss_is_a_weighted_mean(deepcluster, samples):
    model = deepcluster(REWEIGHT=True).eval()
    model.cluster(features())
    weights, labels = model.memory_bank.class_weights, model.memory_bank.label_bank
    assert weights.sum().item() == pytest.approx(1)
    roots = torch.bincount(labels).rsqrt()
    torch.testing.assert_close(weights, roots / roots.sum())
    batch = samples(4, sizes=[32])
    scores = torch.stack([p["scores"] for p in model(batch, mode="predict")])
    expected = F.cross_entropy(scores, labels[:4], weight=weights)  # the sum of w_y nll over that of w_y
    torch.testing.assert_close(model(batch, mode="loss")["loss"], expected)


def test_equal_weights_change_nothing(deepcluster, samples):
    model = deepcluster().eval()
    model.cluster(features())
    assert model.memory_bank.class_weights.tolist() == pytest.approx([1 / 3] * 3)
    batch = samples(4, sizes=[32])
    loss = model(batch, mode="loss")["loss"]
    model.memory_bank.class_weights.fill_(7.0)
    torch.testing.assert_close(model(batch, mode="loss")["loss"], loss)


def test_gradient_reaches_all_parameters(deepcluster, samples):
    model = deepcluster()
    model.cluster(features())
    model(samples(4))["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_labels_are_saved(deepcluster, samples):
    model, resumed = deepcluster(), deepcluster(seed=1)
    model.cluster(features())
    resumed.load_state_dict(model.state_dict())
    assert resumed.is_clustered
    torch.testing.assert_close(resumed(samples(4)), model(samples(4)), rtol=0, atol=0)
    model.cluster(features(1))
    resumed.cluster(features(1))
    assert torch.equal(resumed.memory_bank.label_bank, model.memory_bank.label_bank)


def test_clusters_are_of_whitened_features():
    memory = PseudoLabels(length=40, num_classes=2, num_components=1)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] *= 100
    memory.cluster(x)
    # One component, normalised, is its sign.
    signs = (x[:, 1] > x[:, 1].mean()).long()
    assert torch.equal(memory.label_bank, signs) or torch.equal(memory.label_bank, 1 - signs)


def test_each_clustering_draws_other_centroids_and_takes_its_iterations():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(pca_whiten(x, 4), dim=1)
    memory = PseudoLabels(length=200, num_classes=10, num_components=4, num_iters=3)
    for seed in range(2):
        memory.cluster(x)
        assert torch.equal(memory.label_bank, kmeans(unit, 10, 3, seed))
    assert not torch.equal(kmeans(unit, 10, 3, 0), kmeans(unit, 10, 3, 1))
    assert not torch.equal(kmeans(unit, 10, 3, 1), kmeans(unit, 10, 20, 1))


@pytest.mark.parametrize(("part", "other"), [("HEAD", "MEMORY"), ("MEMORY", "HEAD")])
def test_a_missing_part_is_an_error_that_names_its_section(ssl_cfg, part, other):
    parts = {"HEAD": {"NAME": "LinearClsHead", "NUM_CLASSES": 3}, "MEMORY": {"NAME": "PseudoLabels"}}
    with pytest.raises(ConfigError, match=rf"DeepCluster needs MODEL.SSL.{part}, as {{NAME"):
        build_model(ssl_cfg("DeepCluster", **{other: parts[other]}))


def test_without_samples_it_predicts_and_a_loss_says_what_is_missing(deepcluster, samples):
    model = deepcluster(LENGTH=0)
    assert model.eval()(samples(2), mode="predict")[0]["scores"].shape == (3,)
    assert not model.is_clustered
    with pytest.raises(DatasetError, match=r"a sample_idx is 0, but MODEL.SSL.MEMORY remembers 0 samples"):
        model.train()(samples(2))


def test_more_clusters_than_samples_are_an_error():
    with pytest.raises(ConfigError, match="8 samples cannot fill 9 clusters"):
        PseudoLabels(length=8, num_classes=9)


def test_sample_beyond_the_memory_is_an_error(deepcluster, samples):
    model = deepcluster()
    model.cluster(features())
    with pytest.raises(DatasetError, match=r"a sample_idx is 8, but MODEL.SSL.MEMORY remembers 8 samples"):
        model(samples(9))


def test_edges_are_those_of_the_two_filters():
    images = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    filters = torch.tensor(
        [
            [[[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]],
            [[[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]],
        ]
    )
    torch.testing.assert_close(sobel(images), F.conv2d(images.mean(dim=1, keepdim=True), filters, padding=1))


def test_resnet_may_see_edges_only():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_sobel_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2"]
    backbone = build_backbone(cfg).eval()
    assert backbone.stem.conv1.weight.shape[1] == 2
    gray = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(1, 3, 32, 32)
    colours = torch.tensor([1.0, -2.0, 1.0]).view(3, 1, 1)  # whose mean is 0
    torch.testing.assert_close(backbone(gray + colours)["res2"], backbone(gray)["res2"], rtol=1e-3, atol=1e-3)
