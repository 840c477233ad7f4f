import math

import pytest
import torch
from torchvision import ops

from detlib.layers import ciou_loss, diou_loss, giou_loss, sigmoid_focal_loss, smooth_l1_loss
from detlib.layers.losses import dice_loss, iou_loss, upcast

IOU_LOSSES = [iou_loss, giou_loss, diou_loss, ciou_loss]

# 2 x 2 boxes whose corners overlap by 1 x 1: intersection 1, union 7, enclosing box 3 x 3, centers sqrt(2) apart.
LEFT = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
RIGHT = torch.tensor([[1.0, 1.0, 3.0, 3.0]])


def random_boxes(count):
    corner = torch.rand(count, 2) * 10
    return torch.cat([corner, corner + torch.rand(count, 2) * 5 + 0.5], dim=1)


@pytest.mark.parametrize(("mode", "expected"), [("log", math.log(7)), ("linear", 6 / 7), ("square", 48 / 49)])
def test_iou_loss_of_overlapping_squares(mode, expected):
    assert iou_loss(LEFT, RIGHT, mode=mode).item() == pytest.approx(expected)


def test_iou_loss_of_boxes_apart_is_limited():
    assert iou_loss(LEFT, LEFT + 5).item() == pytest.approx(-math.log(1e-6))


def test_iou_loss_names_its_modes():
    with pytest.raises(ValueError, match="mode is 'cubic'; expected 'log', 'linear' or 'square'"):
        iou_loss(LEFT, RIGHT, mode="cubic")


def test_giou_loss_of_overlapping_squares():
    assert giou_loss(LEFT, RIGHT).item() == pytest.approx(1 - 1 / 7 + 2 / 9)


def test_diou_loss_of_overlapping_squares():
    assert diou_loss(LEFT, RIGHT).item() == pytest.approx(1 - 1 / 7 + 2 / 18)


def test_ciou_loss_of_equal_aspect_ratios_is_diou_loss():
    torch.testing.assert_close(ciou_loss(LEFT, RIGHT), diou_loss(LEFT, RIGHT))


def test_ciou_loss_of_concentric_boxes_adds_the_aspect_term():
    tall, wide = torch.tensor([[1.0, 0.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 3.0, 2.0]])
    iou = 1 / 5
    v = 4 / math.pi**2 * (math.atan(3) - math.atan(1 / 3)) ** 2
    assert ciou_loss(tall, wide).item() == pytest.approx(1 - iou + v * v / (1 - iou + v))


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_of_equal_boxes_are_zero(loss):
    torch.testing.assert_close(loss(LEFT, LEFT), torch.zeros(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (giou_loss, ops.generalized_box_iou_loss),
        (diou_loss, ops.distance_box_iou_loss),
        (ciou_loss, ops.complete_box_iou_loss),
    ],
)
def test_iou_losses_and_gradients_agree_with_torchvision(loss, reference):
    a, b = random_boxes(50).requires_grad_(), random_boxes(50)
    ours, theirs = loss(a, b), reference(a, b)
    torch.testing.assert_close(ours, theirs)
    (our_gradient,) = torch.autograd.grad(ours.sum(), a)
    (their_gradient,) = torch.autograd.grad(theirs.sum(), a)
    torch.testing.assert_close(our_gradient, their_gradient)


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_of_no_boxes_are_zero_with_gradient(loss):
    boxes = torch.zeros(0, 4, requires_grad=True)
    for reduction in ("mean", "sum"):
        value = loss(boxes, torch.zeros(0, 4), reduction=reduction)
        value.backward()
        assert value.item() == 0
    assert boxes.grad.shape == (0, 4)


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_of_boxes_without_size_are_finite_with_gradient(loss):
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 3.0, 1.0]], requires_grad=True)
    value = loss(point, LEFT.expand(2, 4), reduction="sum")
    value.backward()
    assert value.isfinite()
    assert point.grad.isfinite().all()


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_of_large_boxes_in_half_precision_are_finite(loss):
    boxes = torch.tensor([[0.0, 0.0, 1024.0, 1024.0]]).half()
    torch.testing.assert_close(loss(boxes, boxes), torch.zeros(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_name_the_reductions(loss):
    assert loss(LEFT, RIGHT, reduction="mean") == loss(LEFT, RIGHT, reduction="sum") == loss(LEFT, RIGHT)[0]
    with pytest.raises(ValueError, match="'avg'; expected 'none', 'mean' or 'sum'"):
        loss(LEFT, RIGHT, reduction="avg")


def test_focal_loss_at_probability_one_half():
    loss = sigmoid_focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), alpha=0.25, gamma=2.0)
    expected = torch.tensor([0.25, 0.75]) * 0.25 * math.log(2)
    torch.testing.assert_close(loss, expected)


def test_smooth_l1_loss_changes_at_beta():
    loss = smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2), beta=1.0)
    assert loss.tolist() == [0.125, 2.5]  # 0.5 x^2 / beta, then |x| - 0.5 beta


def test_dice_loss_at_probability_one_half():
    loss = dice_loss(torch.zeros(1, 2, 2), torch.tensor([[[1, 1], [1, 0]]]))
    assert loss.item() == pytest.approx(1 - (2 * 1.5 + 1) / (2 + 3 + 1))


def test_dice_loss_of_an_empty_mask_without_prediction_is_zero():
    assert dice_loss(torch.full((1, 4), -100.0), torch.zeros(1, 4)).item() == 0


def test_dice_loss_of_a_large_mask_in_half_precision_is_exact():
    logits = torch.full((1, 100_000), 100.0).half()
    assert dice_loss(logits, torch.ones(1, 100_000)).item() == pytest.approx(0, abs=1e-6)


def test_dice_loss_of_no_masks_is_zero_with_gradient():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = dice_loss(logits, torch.zeros(0, 4), reduction="mean")
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.int64, torch.float32), (torch.float64, torch.float64)],
)
def test_upcast_is_to_float32_at_least(dtype, expected):
    assert upcast(torch.zeros(1, dtype=dtype)).dtype == expected
