import math

import pytest
import torch

from detlib.modeling.box_regression import (
    Box2BoxTransform,
    Box2BoxTransformLinear,
    Box2BoxTransformRotated,
    _dense_box_regression_loss,
    box_regression_loss,
)
from detlib.modeling.loss import GIoULoss, L1Loss
from detlib.structures import Boxes
from detlib.utils.errors import ConfigError

SOURCE = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
ONES = (1.0, 1.0, 1.0, 1.0)


def test_equal_boxes_have_zero_deltas():
    assert Box2BoxTransform(ONES).get_deltas(SOURCE, SOURCE).abs().max() == 0


def test_shift_by_a_width_and_double_height():
    target = torch.tensor([[10.0, -10.0, 20.0, 30.0]])
    deltas = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)).get_deltas(SOURCE, target)
    torch.testing.assert_close(deltas, torch.tensor([[10.0, 0.0, 0.0, 5.0 * math.log(2)]]))


def test_apply_deltas_undoes_get_deltas():
    generator = torch.Generator().manual_seed(0)
    xy, wh = torch.rand(2, 50, 2, generator=generator) * 100
    source = torch.cat([xy, xy + wh + 1], dim=1)
    target = source.roll(1, dims=0)
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    found = transform.apply_deltas(transform.get_deltas(source, target), source)
    torch.testing.assert_close(found, target, atol=1e-3, rtol=1e-4)


def test_each_class_has_its_own_deltas():
    deltas = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    found = Box2BoxTransform(ONES).apply_deltas(deltas, SOURCE)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 10.0, 20.0, 10.0, 0.0, 20.0, 20.0]]))


def test_growth_is_limited_to_62_and_a_half_times():
    found = Box2BoxTransform(ONES).apply_deltas(torch.tensor([[0.0, 0.0, 1e6, 0.0]]), SOURCE)
    torch.testing.assert_close(found[0, 2] - found[0, 0], torch.tensor(625.0))


def test_half_precision_deltas_are_applied_in_float32():
    assert Box2BoxTransform(ONES).apply_deltas(torch.zeros(1, 4, dtype=torch.float16), SOURCE).dtype == torch.float32


def test_no_boxes_give_no_boxes():
    empty = torch.zeros(0, 4)
    assert Box2BoxTransform(ONES).apply_deltas(empty, empty).shape == (0, 4)
    assert Box2BoxTransformLinear().get_deltas(empty, empty).shape == (0, 4)


def test_linear_deltas_are_distances_in_units_of_the_source():
    target = torch.tensor([[0.0, 0.0, 20.0, 40.0]])  # The source's centre is (5, 10), its size (10, 20).
    deltas = Box2BoxTransformLinear().get_deltas(SOURCE, target)
    torch.testing.assert_close(deltas, torch.tensor([[0.5, 0.5, 1.5, 1.5]]))
    torch.testing.assert_close(Box2BoxTransformLinear().apply_deltas(deltas, SOURCE), target)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_perfect_boxes_have_no_loss(loss_type):
    loss = _dense_box_regression_loss(
        [Boxes(SOURCE)],
        Box2BoxTransform(ONES),
        [torch.zeros(2, 1, 4)],
        [SOURCE, SOURCE],
        torch.ones(2, 1).bool(),
        loss_type,
    )
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_without_foreground_the_loss_is_zero_and_has_a_gradient(loss_type):
    deltas = torch.zeros(1, 1, 4, requires_grad=True)
    loss = _dense_box_regression_loss(
        [Boxes(SOURCE)], Box2BoxTransform(ONES), [deltas], [torch.zeros(1, 4)], torch.zeros(1, 1).bool(), loss_type
    )
    loss.backward()
    assert loss == 0
    assert deltas.grad.abs().max() == 0


def test_only_foreground_anchors_count():
    deltas = torch.tensor([[[0.5, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    loss = _dense_box_regression_loss(
        [SOURCE, SOURCE], Box2BoxTransform(ONES), [deltas], [SOURCE.repeat(2, 1)], torch.tensor([[True, False]])
    )
    torch.testing.assert_close(loss, torch.tensor(0.5))


def test_unknown_loss_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'l3'; it must be one of smooth_l1, giou, diou, ciou"):
        _dense_box_regression_loss(
            [SOURCE], Box2BoxTransform(ONES), [torch.zeros(1, 1, 4)], [SOURCE], torch.ones(1, 1).bool(), "l3"
        )


ROTATED_SOURCE = torch.tensor([[50.0, 50.0, 10.0, 20.0, 170.0]])
FIVE_ONES = (1.0, 1.0, 1.0, 1.0, 1.0)


def test_rotated_deltas_take_the_shorter_turn_in_radians():
    target = torch.tensor([[60.0, 40.0, 20.0, 20.0, -170.0]])
    deltas = Box2BoxTransformRotated((10.0, 10.0, 5.0, 5.0, 3.0)).get_deltas(ROTATED_SOURCE, target)
    torch.testing.assert_close(deltas, torch.tensor([[10.0, -5.0, 5.0 * math.log(2), 0.0, 3.0 * math.pi / 9]]))


def test_rotated_apply_deltas_undoes_get_deltas():
    values = torch.rand(50, 5, generator=torch.Generator().manual_seed(0))
    source = values * torch.tensor([100.0, 100.0, 30.0, 30.0, 360.0]) + torch.tensor([0.0, 0.0, 1.0, 1.0, -180.0])
    target = source.roll(1, dims=0)
    transform = Box2BoxTransformRotated((10.0, 10.0, 5.0, 5.0, 2.0))
    found = transform.apply_deltas(transform.get_deltas(source, target), source)
    torch.testing.assert_close(found, target, atol=1e-3, rtol=1e-4)


def test_rotated_deltas_of_several_classes_give_a_box_for_each():
    deltas = torch.tensor([[0.0, 0.0, 0.0, 0.0, math.pi / 9, 1.0, 0.0, 0.0, 0.0, 0.0]])
    found = Box2BoxTransformRotated(FIVE_ONES).apply_deltas(deltas, ROTATED_SOURCE)
    expected = torch.tensor([[50.0, 50.0, 10.0, 20.0, -170.0, 60.0, 50.0, 10.0, 20.0, 170.0]])
    torch.testing.assert_close(found, expected)


def test_rotated_deltas_of_size_are_limited():
    deltas = torch.tensor([[0.0, 0.0, 100.0, 1.0, 0.0]])
    found = Box2BoxTransformRotated(FIVE_ONES, scale_clamp=math.log(2)).apply_deltas(deltas, ROTATED_SOURCE)
    torch.testing.assert_close(found, torch.tensor([[50.0, 50.0, 20.0, 40.0, 170.0]]))


def test_rotated_transform_of_no_boxes_gives_no_boxes():
    transform = Box2BoxTransformRotated(FIVE_ONES)
    assert transform.get_deltas(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0, 5)
    assert transform.apply_deltas(torch.zeros(0, 10), torch.zeros(0, 5)).shape == (0, 10)


def test_rotated_regression_loss_is_the_distance_of_deltas():
    target = torch.tensor([[60.0, 50.0, 10.0, 20.0, 170.0]])
    loss = box_regression_loss(Box2BoxTransformRotated(FIVE_ONES), ROTATED_SOURCE, torch.zeros(1, 5), target, L1Loss())
    assert loss == 1


def test_regression_loss_gives_boxes_to_a_loss_on_boxes_and_deltas_to_others():
    source, target = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    deltas = torch.zeros(1, 4)
    assert box_regression_loss(transform, source, deltas, target, L1Loss(), avg_factor=2.0) == 0.5  # dx + dy = 1
    giou = box_regression_loss(transform, source, deltas, target, GIoULoss(), avg_factor=1.0)
    assert giou.item() == pytest.approx(1.079365, abs=1e-5)


def test_regression_loss_of_no_boxes_is_zero_and_has_a_graph():
    deltas = torch.zeros(0, 4, requires_grad=True)
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    loss = box_regression_loss(transform, torch.zeros(0, 4), deltas, torch.zeros(0, 4), GIoULoss())
    loss.backward()
    assert loss == 0


def test_rotated_boxes_refuse_a_loss_on_boxes():
    transform = Box2BoxTransformRotated(FIVE_ONES)
    with pytest.raises(ConfigError, match="GIoULoss is for upright boxes"):
        box_regression_loss(transform, ROTATED_SOURCE, torch.zeros(1, 5), ROTATED_SOURCE, GIoULoss())
