import pytest
import torch

from detlib.modeling.loss import (
    CIoULoss,
    DiceLoss,
    DIoULoss,
    GIoULoss,
    IoULoss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
    l1_loss,
)

PRED, TARGET = torch.tensor([0.0, 2.0, 3.0]), torch.ones(3)
WEIGHT = torch.tensor([1.0, 0.0, 1.0])

BOXES = torch.tensor([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 4, 3], [0, 0, 4, 2], [0, 0, 8, 2]]).float()
TARGETS = torch.tensor([[1, 1, 3, 3], [2, 0, 3, 1], [0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]]).float()
IOU_LOSSES = [IoULoss(), IoULoss("linear"), IoULoss("square"), GIoULoss(), DIoULoss(), CIoULoss()]


def test_l1_loss_as_a_function():
    assert l1_loss(PRED, TARGET).item() == pytest.approx(4 / 3)
    assert l1_loss(PRED, TARGET, WEIGHT).item() == 1.0
    assert l1_loss(PRED, TARGET, reduction="none").tolist() == [1, 1, 2]
    assert l1_loss(PRED, TARGET, WEIGHT, avg_factor=2).item() == 1.5


def test_l1_loss_as_a_module():
    assert L1Loss()(PRED, TARGET).item() == pytest.approx(4 / 3)
    assert L1Loss()(PRED, TARGET, WEIGHT).item() == 1.0
    assert L1Loss()(PRED, TARGET, reduction_override="none").tolist() == [1, 1, 2]
    assert L1Loss(loss_weight=2.0)(PRED, TARGET, WEIGHT, avg_factor=2).item() == 3.0
    torch.testing.assert_close(L1Loss()(PRED, TARGET, avg_factor=3), L1Loss()(PRED, TARGET))


def test_gradient_of_the_mean_l1_loss_is_the_sign_over_the_number_of_elements():
    pred = PRED.clone().requires_grad_()
    L1Loss()(pred, TARGET).backward()
    torch.testing.assert_close(pred.grad, torch.tensor([-1.0, 1.0, 1.0]) / 3)


def test_function_refuses_other_shapes_and_nothing():
    with pytest.raises(AssertionError, match=r"predictions are \(2, 3\) and targets \(3,\); expected one shape"):
        l1_loss(torch.zeros(2, 3), TARGET)
    with pytest.raises(AssertionError, match=r"\(0, 4\), so there is nothing to compare"):
        l1_loss(torch.zeros(0, 4), torch.zeros(0, 4))


@pytest.mark.parametrize("loss", [L1Loss(), SmoothL1Loss(), MSELoss(), *IOU_LOSSES])
def test_integer_labels_against_scores_are_an_error(loss):
    with pytest.raises(AssertionError, match=r"predictions are \(4, 4\) and targets \(4,\); expected one shape"):
        loss(torch.zeros(4, 4), torch.tensor([0, 1, 2, 3]))


def test_weight_of_as_many_samples_as_columns_is_of_samples():
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0])
    elements = L1Loss()(torch.ones(4, 4), torch.zeros(4, 4), weight, reduction_override="none")
    assert elements.sum(dim=1).tolist() == [4, 0, 0, 0]


@pytest.mark.parametrize(("beta", "expected"), [(1.0, [0.125, 1.5]), (1 / 9, [0.444444, 1.944444]), (0.0, [0.5, 2.0])])
def test_smooth_l1_loss_turns_from_l2_into_l1_at_beta(beta, expected):
    loss = SmoothL1Loss(beta)(torch.tensor([0.5, -2.0]), torch.zeros(2), reduction_override="none")
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_negative_beta_is_an_error():
    with pytest.raises(ValueError, match=r"beta is -1.0; expected 0, which gives L1, or more"):
        SmoothL1Loss(-1.0)


def test_mse_loss_squares():
    assert MSELoss()(PRED, TARGET, reduction_override="none").tolist() == [1, 1, 4]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (IoULoss(), [1.945910, 13.815511, 0.287682, 0.693147, 1.098612]),
        (IoULoss("linear"), [0.857143, 1, 0.25, 0.5, 0.666667]),
        (IoULoss("square"), [0.979592, 1, 0.4375, 0.75, 0.888889]),
        (GIoULoss(), [1.079365, 1.333333, 0.25, 0.5, 0.916667]),
        (DIoULoss(), [0.968254, 1.4, 0.257813, 0.53125, 0.729167]),
        (CIoULoss(), [0.968254, 1.4, 0.258070, 0.534498, 0.747013]),
    ],
)
def test_iou_losses(loss, expected):
    elements = loss(BOXES, TARGETS, reduction_override="none")
    torch.testing.assert_close(elements, torch.tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_of_equal_boxes_are_zero(loss):
    assert loss(BOXES, BOXES).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_are_symmetric_and_know_no_scale(loss):
    expected = loss(BOXES, TARGETS)
    torch.testing.assert_close(loss(TARGETS, BOXES), expected)
    torch.testing.assert_close(loss(100 * BOXES, 100 * TARGETS), expected)


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_of_boxes_without_size_are_finite_with_gradient(loss):
    boxes = torch.tensor([[1.0, 1, 1, 1], [0, 1, 3, 1], [2, 0, 2, 3]], requires_grad=True)
    for targets in (BOXES[:3], boxes.detach()):
        value = loss(boxes, targets)
        value.backward()
        assert value.isfinite()
    assert boxes.grad.isfinite().all()


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_weights_of_coordinates_are_averaged(loss):
    of_coordinates = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [2, 0, 2, 0], [4, 0, 0, 0], [0, 0, 0, 2]])
    of_boxes = torch.tensor([1.0, 0, 1, 1, 0.5])
    torch.testing.assert_close(loss(BOXES, TARGETS, of_coordinates), loss(BOXES, TARGETS, of_boxes))


@pytest.mark.parametrize("loss", IOU_LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_iou_losses_without_a_positive_weight_are_zero_with_gradient(loss, reduction):
    boxes = BOXES.clone().requires_grad_()
    value = loss(boxes, TARGETS, weight=torch.zeros(5, 4), reduction_override=reduction)
    value.backward()
    assert value.item() == 0
    assert (boxes.grad == 0).all()


def test_iou_loss_names_its_modes():
    with pytest.raises(ValueError, match="mode is 'cubic'; expected 'log', 'linear' or 'square'"):
        IoULoss("cubic")


def test_dice_loss_of_masks():
    logits = torch.tensor([[[20.0, 20.0], [-20.0, -20.0]]] * 2)
    masks = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [1, 0]]])
    loss = DiceLoss()(logits, masks, reduction_override="none")
    torch.testing.assert_close(loss, torch.tensor([0.0, 1 - (2 * 1 + 1) / (2 + 2 + 1)]))


def test_dice_loss_of_points_is_that_of_a_mask():
    logits, masks = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    torch.testing.assert_close(DiceLoss()(logits.flatten(1), masks.flatten(1)), DiceLoss()(logits, masks))


def test_dice_loss_of_label_maps_has_a_mask_per_class():
    labels = torch.tensor([[[0, 1], [255, 1]]])
    logits = torch.full((1, 2, 2, 2), -20.0)
    logits[0, 0, 0] = 20.0  # class 0 in the upper row
    loss = DiceLoss()(logits, labels, reduction_override="none")
    torch.testing.assert_close(loss, torch.tensor([[1 - (2 * 1 + 1) / (2 + 1 + 1), 1 - 1 / (0 + 2 + 1)]]))


def test_dice_loss_of_no_images_is_zero_with_gradient():
    logits = torch.zeros(0, 2, 4, 4, requires_grad=True)
    loss = DiceLoss()(logits, torch.zeros(0, 4, 4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
