import copy
import logging
import math

import pytest
import torch
from torch import nn

from detlib.evaluation import feature_evaluation
from detlib.evaluation.feature_evaluation import (
    RECIPES,
    LabelledFeatures,
    ProbeRecipe,
    extract_features,
    knn_accuracies,
    name_of_backbone,
    pca_projection,
    probe_accuracies,
    train_linear_probe,
    tsne_projection,
)
from detlib.modeling import build_model
from detlib.utils.errors import ConfigError, DatasetError


def labelled(features, labels):
    return LabelledFeatures(torch.tensor(features), torch.tensor(labels))


def random_features(num_images, channels=8, num_classes=3):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_images, channels, generator=generator)
    return LabelledFeatures(features, torch.arange(num_images) % num_classes)


@pytest.fixture
def classifier(tiny_cfg):
    tiny_cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    tiny_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    tiny_cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    return build_model(tiny_cfg)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    samples = [{"image": image, "label": i % 2} for i, image in enumerate(images)]
    return [samples[:3], samples[3:]]


def test_features_are_the_mean_of_the_last_map(classifier, batches):
    features, labels = extract_features(classifier, batches)
    assert labels.tolist() == [0, 1, 0, 1]
    classifier.eval()
    with torch.no_grad():
        maps = classifier.backbone(classifier.preprocess_image(batches[1]).tensor)["res5"]
    torch.testing.assert_close(features[3], maps.mean(dim=(2, 3))[0])


def test_another_feature_can_be_named(classifier, batches):
    assert extract_features(classifier, batches, "res3").features.shape == (4, 16)
    with pytest.raises(ConfigError, match=r"'res2'.*it gives res3 \(3, 16, 4, 4\)"):
        extract_features(classifier, batches, "res2")


def test_extraction_leaves_model_and_its_mode_as_they_were(classifier, batches):
    classifier.train()
    before = copy.deepcopy(classifier.state_dict())
    train = extract_features(classifier, batches)
    train_linear_probe(train, num_classes=2)
    after = classifier.state_dict()
    assert classifier.training and classifier.backbone.training
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_below_a_neck_the_backbone_itself_is_evaluated(tiny_cfg, batches):
    detector = build_model(tiny_cfg)
    assert name_of_backbone(detector) == "backbone.bottom_up"
    assert extract_features(detector, batches).features.shape == (4, 64)


def test_vectors_are_taken_as_they_are(classifier, batches, monkeypatch):
    monkeypatch.setattr(classifier.backbone, "forward", lambda images: {"cls_token": images[:, :, 0, 0]})
    assert extract_features(classifier, batches, "cls_token").features.shape == (4, 3)
    with pytest.raises(ConfigError, match=r"a map \(N, C, H, W\); it gives cls_token"):
        extract_features(classifier, batches)


@pytest.mark.parametrize("label", [None, -1, [1, 2]])
def test_samples_without_one_class_are_refused(classifier, batches, label):
    batches[1][0]["label"] = label
    with pytest.raises(DatasetError, match="one class each"):
        extract_features(classifier, batches)


def test_model_without_backbone_is_refused():
    with pytest.raises(ConfigError, match="Linear has no backbone"):
        name_of_backbone(nn.Linear(1, 1))


def test_nearest_neighbour_in_its_own_training_set_is_always_right():
    train = random_features(50)
    assert knn_accuracies(train, train, ks=[1])[1] == {"top1": 100.0}


def test_votes_count_by_similarity():
    train = labelled([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, 1, 1])
    test = labelled([[4.0, 3.0]], [0])  # Similarities 0.8, 0.6 and 0.6.
    # exp(0.8 / 0.07) is more than 2 exp(0.6 / 0.07), but exp(0.8) is not more than 2 exp(0.6).
    assert knn_accuracies(train, test, ks=[3])[3]["top1"] == 100
    assert knn_accuracies(train, test, ks=[3], temperature=1.0)[3]["top1"] == 0
    assert math.exp(0.2 / 0.07) > 2 > math.exp(0.2)


def test_neighbours_do_not_depend_on_the_scale_of_features():
    train, test = random_features(60), random_features(20)
    scaled = [LabelledFeatures(1000 * part.features, part.labels) for part in (train, test)]
    assert knn_accuracies(*scaled) == knn_accuracies(train, test)


def test_more_neighbours_than_training_images_are_all_of_them(caplog):
    train = random_features(30)
    with caplog.at_level(logging.WARNING):
        accuracies = knn_accuracies(train, train)
    assert list(accuracies) == [10, 20, 30]
    assert "There are 30 training images" in caplog.text


def test_five_best_classes_are_counted_if_there_are_as_many():
    train = labelled(torch.eye(6).tolist(), list(range(6)))
    # The second class is nearest, and the others follow in turn: the last one, class 5, is not among the best 5.
    test = labelled([[0.5, 0.6, 0.4, 0.3, 0.2, 0.1]] * 2, [0, 5])
    assert knn_accuracies(train, test, ks=[6])[6] == {"top1": 0, "top5": 50}


@pytest.mark.parametrize("max_similarities", [1, 100])
def test_chunks_change_nothing(monkeypatch, max_similarities):
    train = random_features(40)
    expected = knn_accuracies(train, random_features(30), ks=[5])
    monkeypatch.setattr(feature_evaluation, "MAX_SIMILARITIES", max_similarities)
    assert knn_accuracies(train, random_features(30), ks=[5]) == expected


def test_no_neighbour_at_all_is_refused():
    with pytest.raises(ConfigError, match="k is 0"):
        knn_accuracies(random_features(4), random_features(4), ks=[0])


def test_probe_of_2048_channels_has_as_many_parameters_as_a_linear_layer():
    train = random_features(6, channels=2048)
    for recipe in (ProbeRecipe(epochs=1), ProbeRecipe(epochs=1, standardize=True)):
        probe = train_linear_probe(train, num_classes=3, recipe=recipe)
        assert sum(p.numel() for p in probe.parameters() if p.requires_grad) == 2048 * 3 + 3


@pytest.mark.parametrize("name", RECIPES)
def test_probe_learns_a_class_for_each_direction_with_every_recipe(name):
    features = torch.eye(3).repeat(40, 1) + 0.01 * random_features(120, channels=3).features
    train = LabelledFeatures(features, torch.arange(120) % 3)
    assert probe_accuracies(train_linear_probe(train, 3, RECIPES[name]), train) == {"top1": 100}


def test_standardised_probe_does_not_depend_on_the_scale_of_features():
    train = random_features(40)
    scaled = LabelledFeatures(1000 * train.features + 5, train.labels)
    probes = [train_linear_probe(part, 3, ProbeRecipe(epochs=3, standardize=True)) for part in (train, scaled)]
    with torch.no_grad():
        torch.testing.assert_close(probes[0](train.features), probes[1](scaled.features), atol=1e-4, rtol=1e-4)


def test_probe_is_the_same_again():
    train = random_features(40)
    first, second = (train_linear_probe(train, 3, ProbeRecipe(epochs=2, batch_size=8)) for _ in range(2))
    assert torch.equal(first.weight, second.weight)


def test_rate_of_the_probe_is_scaled_to_its_batch(monkeypatch):
    rates = []
    monkeypatch.setattr(
        feature_evaluation, "SGD", lambda params, lr, **rest: rates.append(lr) or torch.optim.SGD(params, lr)
    )
    for batch_size in (256, 32):
        train_linear_probe(random_features(64), 3, ProbeRecipe(lr=8.0, batch_size=batch_size, epochs=1))
    assert rates == [8.0, 1.0]


def test_diverging_probe_is_an_error_that_says_what_to_do():
    train = random_features(8)
    with pytest.raises(ConfigError, match="lower its lr"):
        train_linear_probe(train, 3, ProbeRecipe(lr=float("inf"), epochs=2))


def test_unknown_optimizer_of_the_probe_is_named():
    with pytest.raises(ConfigError, match="'Adam'; use SGD or LARS"):
        train_linear_probe(random_features(4), 3, ProbeRecipe("Adam"))


def test_pca_finds_the_directions_of_largest_variance():
    features = torch.tensor([[3.0, 0.0, 7.0], [-3.0, 0.0, 7.0], [0.0, 1.0, 7.0], [0.0, -1.0, 7.0]])
    points, shares = pca_projection(features)
    torch.testing.assert_close(points.abs(), torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    assert shares == pytest.approx([0.9, 0.1])


def test_tsne_needs_scikit_learn(monkeypatch):
    monkeypatch.setattr(feature_evaluation.importlib.util, "find_spec", lambda name: None)
    assert tsne_projection(torch.zeros(4, 2)) is None


def test_tsne_gives_a_point_for_each_image():
    pytest.importorskip("sklearn")
    assert tsne_projection(random_features(10).features).shape == (10, 2)
