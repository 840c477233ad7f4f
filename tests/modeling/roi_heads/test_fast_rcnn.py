import math

import pytest
import torch

from detlib.layers import ShapeSpec
from detlib.modeling.box_regression import Box2BoxTransform
from detlib.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detlib.structures import Boxes, Instances
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

K = 3
UNIT = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))


def layers(**kwargs):
    return FastRCNNOutputLayers(ShapeSpec(channels=4), box2box_transform=UNIT, num_classes=K, **kwargs)


def proposals(xyxy, classes, gt_xyxy=None):
    boxes = Boxes(torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4))
    instances = Instances((40, 40), proposal_boxes=boxes, gt_classes=torch.tensor(classes, dtype=torch.int64))
    if gt_xyxy is not None:
        instances.gt_boxes = Boxes(torch.tensor(gt_xyxy, dtype=torch.float32).reshape(-1, 4))
    return instances


def test_untrained_classes_cost_the_log_of_their_number():
    predictions = torch.zeros(2, K + 1), torch.zeros(2, K * 4)
    given = [proposals([[0, 0, 10, 10], [0, 0, 20, 20]], [1, K], [[0, 0, 10, 10]] * 2)]
    losses = layers().losses(predictions, given)
    assert losses["loss_cls"].item() == pytest.approx(math.log(K + 1))
    # The only object's box is predicted exactly.
    assert losses["loss_box_reg"].item() == 0


def test_box_loss_is_of_the_true_class_and_divided_by_all_regions():
    deltas = torch.zeros(2, K, 4)
    deltas[0, 1] = 0.5  # The true class: four deltas are off by one half each.
    deltas[0, 2] = 9.0  # Another class
    deltas[1] = 9.0  # The background
    given = [proposals([[0, 0, 10, 10]] * 2, [1, K], [[0, 0, 10, 10]] * 2)]
    losses = layers().losses((torch.zeros(2, K + 1), deltas.flatten(1)), given)
    assert losses["loss_box_reg"].item() == pytest.approx(4 * 0.5 / 2)


def test_one_box_for_all_classes():
    model = layers(cls_agnostic_bbox_reg=True)
    assert model(torch.zeros(2, 4))[1].shape == (2, 4)
    given = [proposals([[0, 0, 10, 10]], [2], [[0, 0, 10, 10]])]
    loss = model.losses((torch.zeros(1, K + 1), torch.full((1, 4), 0.25)), given)["loss_box_reg"]
    assert loss.item() == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{}, {"use_sigmoid_ce": True}, {"box_reg_loss_type": "giou"}])
def test_no_regions_cost_nothing_but_keep_the_graph(options):
    model = layers(**options)
    features = torch.zeros(0, 4, requires_grad=True)
    losses = model.losses(model(features), [proposals([], [])])
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_cls": 0, "loss_box_reg": 0}
    sum(losses.values()).backward()
    assert model.cls_score.weight.grad.abs().sum() == 0


def test_an_image_without_objects_has_no_box_loss():
    losses = layers().losses((torch.zeros(1, K + 1), torch.ones(1, K * 4)), [proposals([[0, 0, 9, 9]], [K])])
    assert losses["loss_box_reg"].item() == 0


def test_loss_weights_by_name_and_for_all():
    predictions = torch.zeros(1, K + 1), torch.full((1, K * 4), 0.25)
    given = [proposals([[0, 0, 10, 10]], [0], [[0, 0, 10, 10]])]
    plain, named, both = (
        layers(loss_weight=weight).losses(predictions, given) for weight in (1.0, {"loss_box_reg": 3.0}, 2.0)
    )
    assert named == {"loss_cls": plain["loss_cls"], "loss_box_reg": 3 * plain["loss_box_reg"]}
    assert both == {name: 2 * loss for name, loss in plain.items()}


def test_sigmoid_loss_sums_classes_and_averages_regions():
    given = [proposals([[0, 0, 10, 10]] * 2, [0, K], [[0, 0, 10, 10]] * 2)]
    loss = layers(use_sigmoid_ce=True).losses((torch.zeros(2, K + 1), torch.zeros(2, K * 4)), given)["loss_cls"]
    assert loss.item() == pytest.approx(K * math.log(2))


def test_federated_loss_counts_the_classes_in_the_batch_and_a_sample_of_others():
    torch.manual_seed(0)
    odds = torch.tensor([1.0, 1.0, 0.0])
    model = layers(
        use_sigmoid_ce=True, use_fed_loss=True, get_fed_loss_cls_weights=lambda: odds, fed_loss_num_classes=2
    )
    # Class 0 and the background are in the batch: no room for more.
    assert model.get_fed_loss_classes(torch.tensor([0, K, 0]), 2, K, odds).tolist() == [0, K]
    # Class 2 is never drawn, class 0 is there already.
    assert sorted(model.get_fed_loss_classes(torch.tensor([0, K]), 3, K, odds).tolist()) == [0, 1, K]
    assert sorted(model.get_fed_loss_classes(torch.tensor([0]), 50, K, None).tolist()) == [0, 1, 2]
    # A batch with every class leaves none to draw.
    assert model.get_fed_loss_classes(torch.tensor([0, 1, 2, K]), 50, K, None).tolist() == [0, 1, 2, K]
    given = [proposals([[0, 0, 10, 10]] * 2, [0, K], [[0, 0, 10, 10]] * 2)]
    loss = model.losses((torch.zeros(2, K + 1), torch.zeros(2, K * 4)), given)["loss_cls"]
    assert loss.item() == pytest.approx(math.log(2))  # One class instead of K.


def test_federated_loss_without_sigmoid_is_a_config_error():
    with pytest.raises(ConfigError, match="USE_SIGMOID_CE"):
        layers(use_fed_loss=True)


def test_boxes_for_true_classes_pick_the_column_of_the_class():
    deltas = torch.zeros(2, K, 4)
    deltas[0, 2, 0] = 1.0  # One width to the right
    given = [proposals([[0, 0, 10, 10]] * 2, [2, K])]
    boxes = layers().predict_boxes_for_gt_classes((torch.zeros(2, K + 1), deltas.flatten(1)), given)
    assert boxes[0].tolist() == [[10, 0, 20, 10], [0, 0, 10, 10]]


def test_detections_are_suppressed_within_a_class_sorted_and_cut():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 50]])
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.1, 0.8, 0.1]])  # The last is the background.
    (result,), (kept,) = fast_rcnn_inference([boxes], [scores], [(40, 40)], 0.2, 0.5, 2)
    assert result.pred_classes.tolist() == [1, 0]
    assert result.scores.tolist() == pytest.approx([0.8, 0.6])
    assert kept.tolist() == [2, 1]
    assert result.pred_boxes.tensor.tolist() == [[20, 20, 30, 40], [0, 0, 10, 9]]  # Clipped to the image
    assert len(fast_rcnn_inference([boxes], [scores], [(40, 40)], 0.2, 0.5, -1)[0][0]) == 3


def test_regions_that_are_not_finite_are_left_out():
    boxes = torch.tensor([[0.0, 0, float("inf"), 10], [0, 0, 10, 10]])
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    (result,), _ = fast_rcnn_inference([boxes], [scores], [(40, 40)], 0.05, 0.5, 10)
    assert result.scores.tolist() == pytest.approx([0.8])


def test_no_regions_give_no_detections():
    model = layers().eval()
    (result,), (kept,) = model.inference(model(torch.zeros(0, 4)), [proposals([], [])])
    assert (len(result), len(kept)) == (0, 0)
    assert result.pred_boxes.tensor.shape == (0, 4)


def test_accuracies_are_logged():
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 9.0], [0, 0, 0, 9.0]])
    given = [proposals([[0, 0, 9, 9]] * 3, [0, 1, K], [[0, 0, 9, 9]] * 3)]
    with EventStorage() as storage:
        layers().losses((logits, torch.zeros(3, K * 4)), given)
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["fast_rcnn/cls_accuracy"] == pytest.approx(2 / 3)
    assert latest["fast_rcnn/fg_cls_accuracy"] == pytest.approx(1 / 2)
    assert latest["fast_rcnn/false_negative"] == pytest.approx(1 / 2)
