import math

import pytest
import torch
from torch import nn

from detlib.modeling.head import ClsHead, LinearClsHead, MultiLabelLinearClsHead
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

SCORES = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0]]).log()  # probabilities 0.9, 0.1, 0 ...
LABELS = torch.tensor([0, 1, 1])


class Distance(nn.Module):
    """A loss of the protocol that keeps how it was called."""

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        self.avg_factor = avg_factor
        return (pred - target).abs().sum() / avg_factor


def filled(head, weight):
    with torch.no_grad():
        head.fc.weight.copy_(torch.tensor(weight))
        head.fc.bias.zero_()
    return head


def test_top_k_accuracies_are_percentages():
    accuracy = ClsHead(topk=(1, 2)).accuracy(SCORES, LABELS)
    assert accuracy["top-1"] == pytest.approx(200 / 3)  # the third image has its label in second place
    assert accuracy["top-2"] == 100


def test_of_equal_scores_the_lower_class_comes_first():
    scores = torch.zeros(4, 40)
    accuracy = ClsHead(topk=(1, 5)).accuracy(scores, torch.tensor([0, 4, 5, 39]))
    assert accuracy == {"top-1": 25, "top-5": 50}


def test_a_single_k_is_as_good_as_a_tuple():
    assert ClsHead(topk=3).topk == (3,)
    assert ClsHead(topk=[1, 5]).topk == (1, 5)


@pytest.mark.parametrize("topk", [0, (1, -1)])
def test_k_must_be_positive(topk):
    with pytest.raises(AssertionError, match="topk must be positive"):
        ClsHead(topk=topk)


def test_k_above_the_number_of_classes_is_refused_when_accuracy_is_computed():
    head = LinearClsHead(num_classes=10, in_channels=4, topk=(1, 5))
    assert set(head.accuracy(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64))) == {"top-1", "top-5"}
    head = LinearClsHead(num_classes=10, in_channels=4, topk=(1, 11))
    with pytest.raises(ConfigError, match=r"top-11 accuracy of 10 classes.*TOPK in MODEL\.CLASSIFIER\.HEAD to 10"):
        head.accuracy(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64))


def test_soft_labels_have_no_accuracy():
    with pytest.raises(ValueError, match=r"one class for each image.*got \(3, 3\)"):
        ClsHead().accuracy(SCORES, torch.eye(3))


def test_loss_is_the_mean_over_images_and_accuracies_are_logged():
    head = ClsHead(topk=(1, 2))
    with EventStorage() as storage:
        losses = head.loss(SCORES, LABELS)
    assert set(losses) == {"loss_cls"}
    assert float(losses["loss_cls"]) == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest == {"top1_acc": pytest.approx(200 / 3), "top2_acc": 100}


@pytest.mark.parametrize(
    ("head", "target"), [(ClsHead(Distance()), SCORES.exp()), (ClsHead(cal_acc=False), LABELS)], ids=["soft", "off"]
)
def test_accuracy_is_not_logged(head, target):
    with EventStorage() as storage:
        head.loss(SCORES.exp(), target)
    assert storage.latest() == {}


def test_loss_is_given_the_number_of_images():
    loss = Distance()
    assert ClsHead(loss).loss(torch.zeros(3, 2), torch.ones(3, 2))["loss_cls"] == 2
    assert loss.avg_factor == 3


def test_loss_by_name_is_built():
    head = ClsHead({"NAME": "CrossEntropyLoss", "LOSS_WEIGHT": 2.0}, cal_acc=False)
    assert float(head.loss(torch.zeros(1, 4), torch.tensor([0]))["loss_cls"]) == pytest.approx(2 * math.log(4))


def test_prediction_is_the_softmax_and_the_best_class():
    predictions = ClsHead().predict(SCORES)
    torch.testing.assert_close(torch.stack([p["pred_score"] for p in predictions]), SCORES.exp())
    assert [p["pred_label"] for p in predictions] == [0, 1, 0]
    assert type(predictions[0]["pred_label"]) is int


def test_scores_of_several_classifiers_are_averaged_before_the_softmax():
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    (prediction,) = ClsHead().predict([first, second])
    torch.testing.assert_close(prediction["pred_score"], torch.tensor([1.0, 2.0]).softmax(0))
    assert prediction["pred_label"] == 1


def test_scores_of_half_precision_give_probabilities_of_single_precision():
    (prediction,) = ClsHead().predict(torch.zeros(1, 1000, dtype=torch.float16))
    assert prediction["pred_score"].dtype == torch.float32
    assert float(prediction["pred_score"].sum()) == pytest.approx(1)


@pytest.mark.parametrize("kind", [tuple, list, lambda x: {"res4": x[0], "res5": x[1]}, lambda x: x[1]])
def test_the_last_features_count(kind):
    head = LinearClsHead(num_classes=2, in_channels=3)
    features = kind([torch.zeros(4, 7), torch.ones(4, 3)])
    assert torch.equal(head.pre_logits(features), torch.ones(4, 3))
    assert torch.equal(head(features), head.fc(torch.ones(4, 3)))


def test_linear_layer_starts_with_small_weights_and_no_bias():
    torch.manual_seed(0)
    fc = LinearClsHead(num_classes=100, in_channels=400).fc
    assert fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert fc.weight.mean().item() == pytest.approx(0, abs=2e-4)
    assert (fc.bias == 0).all()


def test_linear_layer_may_start_with_other_weights_and_start_anew():
    torch.manual_seed(0)
    head = LinearClsHead(num_classes=50, in_channels=200, init_std=0.1)
    before = head.fc.weight.detach().clone()
    head.fc.bias.data.fill_(1.0)
    head.reset_parameters()
    assert (head.fc.weight != before).all() and (head.fc.bias == 0).all()
    assert before.std().item() == pytest.approx(0.1, rel=0.03)
    assert head.fc.weight.std().item() == pytest.approx(0.1, rel=0.03)


def test_loss_of_weighted_images_is_their_weighted_mean():
    scores, target = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]]), torch.tensor([0, 0, 1])
    weight = torch.tensor([1e-4, 3e-4, 2e-4])
    each = torch.nn.functional.cross_entropy(scores, target, reduction="none")
    expected = (each * torch.tensor([1.0, 3.0, 2.0])).sum() / 6
    torch.testing.assert_close(ClsHead().loss(scores, target, weight)["loss_cls"], expected)


@pytest.mark.parametrize("head", [LinearClsHead, MultiLabelLinearClsHead])
def test_number_of_classes_must_be_positive(head):
    with pytest.raises(ValueError, match=r"num_classes is 0.*MODEL.CLASSIFIER.NUM_CLASSES"):
        head(num_classes=0, in_channels=4)


@pytest.mark.parametrize("shape", [(2, 8), (2, 4, 7, 7)])
def test_features_that_are_not_pooled_or_of_other_channels_are_refused(shape):
    with pytest.raises(ConfigError, match=r"shape \(N, 4\), got \(2, .*a neck must pool"):
        LinearClsHead(num_classes=2, in_channels=4)(torch.zeros(shape))


# Several labels. Probabilities of one image are sigmoid(-2, 0, 2) = 0.12, 0.5, 0.88.
WEIGHT = [[-2.0], [0.0], [2.0]]


def multi_label(**kwargs):
    return filled(MultiLabelLinearClsHead(num_classes=3, in_channels=1, **kwargs), WEIGHT)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, [1, 2]),  # at least 0.5
        ({"thr": 0.6}, [2]),
        ({"thr": 0.95}, []),
        ({"topk": 1}, [2]),
        ({"topk": 3}, [2, 1, 0]),
        ({"thr": 0.1, "topk": 1}, [0, 1, 2]),  # the threshold wins
    ],
)
def test_classes_above_the_threshold_or_the_best_ones_are_predicted(options, labels):
    (prediction,) = multi_label(**options).predict(torch.ones(1, 1))
    assert prediction["pred_label"] == labels
    torch.testing.assert_close(prediction["pred_score"], torch.tensor([-2.0, 0.0, 2.0]).sigmoid())


def test_each_image_has_labels_of_its_own():
    predictions = multi_label().predict(torch.tensor([[1.0], [-1.0]]))
    assert [p["pred_label"] for p in predictions] == [[1, 2], [0, 1]]


def test_multi_label_loss_is_the_cross_entropy_of_each_class():
    """ln 2 for each of the three classes; divided by the number of images, not of classes."""
    loss = multi_label().loss(torch.zeros(2, 1), torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    assert loss["loss_cls"].item() == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize("topk", [0, 4])
def test_number_of_labels_is_one_of_the_classes(topk):
    with pytest.raises(ConfigError, match=f"topk is {topk}; .* number of classes, 3"):
        multi_label(topk=topk)
