import math

import numpy as np
import pytest
import shapely
import torch
from shapely import affinity

from detlib.layers.rotated_boxes import _NEAR_PAIRS_PER_PART, _iou, pairwise_iou_rotated


def overlap(a, b):
    return pairwise_iou_rotated(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)).item()


def iou_of_polygons(boxes1, boxes2):
    def polygons(boxes):
        upright = [shapely.box(-w / 2, -h / 2, w / 2, h / 2) for _, _, w, h, _ in boxes.tolist()]
        # Shapely's y points up.
        turned = [affinity.rotate(p, -angle, origin=(0, 0)) for p, angle in zip(upright, boxes[:, 4].tolist())]
        return np.array([affinity.translate(p, x, y) for p, (x, y) in zip(turned, boxes[:, :2].tolist())])

    a, b = polygons(boxes1)[:, None], polygons(boxes2)
    intersection = shapely.area(shapely.intersection(a, b))
    return torch.from_numpy(intersection / (shapely.area(a) + shapely.area(b) - intersection))


def random_boxes(number, spread, size, center, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(number, 5, generator=generator)
    xy = center + spread * values[:, :2]
    wh = size * (0.001 + values[:, 2:4])
    angle = 720 * values[:, 4] - 360
    angle[::3] = (angle[::3] / 45).round() * 45  # parallel and diagonal sides
    return torch.cat([xy, wh, angle[:, None]], dim=1)


@pytest.mark.parametrize(
    ("spread", "size", "center"),
    [(50, 50, 0), (50, 5, 0), (1, 100, 0), (1e-3, 1e-3, 0), (1e4, 1e4, 1e5), (1, 1, 1e5)],
    ids=["half overlap", "few overlap", "all overlap", "tiny", "huge", "small and far away"],
)
def test_overlaps_are_those_of_polygons(spread, size, center):
    boxes1, boxes2 = (random_boxes(40, spread, size, center, seed) for seed in (1, 2))
    expected = iou_of_polygons(boxes1, boxes2)
    assert (expected > 0).any()
    iou = pairwise_iou_rotated(boxes1.double(), boxes2.double())
    torch.testing.assert_close(iou, expected, atol=1e-10, rtol=0)
    assert pairwise_iou_rotated(boxes1, boxes2).dtype == torch.float32
    torch.testing.assert_close(pairwise_iou_rotated(boxes1, boxes2), iou.float())


def test_overlaps_of_devices_without_float64_have_the_accuracy_of_float32():
    boxes1, boxes2 = (random_boxes(40, 50, 50, 0, seed) for seed in (1, 2))
    iou = _iou(boxes1[:, None].unbind(-1), boxes2.unbind(-1))
    assert iou.dtype == torch.float32
    torch.testing.assert_close(iou, pairwise_iou_rotated(boxes1, boxes2), atol=2e-5, rtol=0)


def test_overlaps_of_all_pairs_are_those_of_the_pairs_that_are_near():
    boxes1, boxes2 = (random_boxes(40, 50, 10, 0, seed).double() for seed in (1, 2))
    everything = _iou(boxes1[:, None].unbind(-1), boxes2.unbind(-1))
    torch.testing.assert_close(pairwise_iou_rotated(boxes1, boxes2), everything, atol=1e-14, rtol=0)


def test_order_of_lists_transposes_overlaps():
    boxes1, boxes2 = random_boxes(20, 50, 50, 0, 1), random_boxes(30, 50, 50, 0, 2)
    torch.testing.assert_close(pairwise_iou_rotated(boxes1, boxes2), pairwise_iou_rotated(boxes2, boxes1).T)


@pytest.mark.parametrize("size", [(4.0, 2.0), (1e-3, 2e-3), (1e4, 1e-2)])
@pytest.mark.parametrize("center", [0.0, 1e5])
def test_equal_boxes_have_overlap_1(size, center):
    boxes = torch.tensor([[center, -center, *size, angle] for angle in (0.0, 17.3, 45.0, 90.0, -120.1)])
    assert pairwise_iou_rotated(boxes, boxes).diag().tolist() == [1.0] * 5


@pytest.mark.parametrize("turn", [-360, -180, 180, 360, 720])
def test_box_turned_by_half_a_turn_is_the_same(turn):
    boxes = random_boxes(20, 50, 50, 0, 0)
    boxes[:, 4] = boxes[:, 4].round()  # so that float32 holds the sum
    turned = boxes + torch.tensor([0.0, 0.0, 0.0, 0.0, turn])
    assert pairwise_iou_rotated(boxes, turned).diag().tolist() == [1.0] * 20


def test_quarter_turn_exchanges_width_and_height():
    assert overlap([3, 5, 4, 2, 30], [3, 5, 2, 4, 120]) == pytest.approx(1, abs=1e-12)
    assert overlap([3, 5, 4, 2, 30], [3, 5, 2, 4, 30]) == pytest.approx(1 / 3)


def test_positive_angle_is_counter_clockwise():
    # The right end of the long box goes up, where y is small.
    assert overlap([0, 0, 20, 1, 45], [6, -6, 1, 1, 45]) > 0
    assert overlap([0, 0, 20, 1, 45], [6, 6, 1, 1, 45]) == 0


def test_turned_square_overlaps_in_an_octagon():
    octagon = 8 * (math.sqrt(2) - 1)  # of the unit incircle
    assert overlap([0, 0, 2, 2, 0], [0, 0, 2, 2, 45]) == pytest.approx(octagon / (8 - octagon))


def test_box_inside_another_has_the_ratio_of_areas():
    assert overlap([5, 5, 10, 10, 0], [6, 4, 2, 1, 33]) == pytest.approx(2 / 100)
    assert overlap([0, 0, 1e4, 1e4, 10], [3e3, 0, 1e-3, 1e-3, 33]) == pytest.approx(1e-14, rel=1e-6)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0, 201.7])
@pytest.mark.parametrize("shift", [(4, 0), (0, 2), (4, 2), (-4, 2), (4, 1)], ids=str)
def test_boxes_that_share_a_side_or_a_corner_do_not_overlap(angle, shift):
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = shift[0] * cos + shift[1] * sin, -shift[0] * sin + shift[1] * cos
    assert overlap([0, 0, 4, 2, angle], [x, y, 4, 2, angle]) == 0


def test_corner_that_touches_a_side_does_not_overlap():
    assert overlap([0, 0, 2, 2, 0], [1 + math.sqrt(2), 0.3, 2, 2, 45]) == 0


def test_boxes_without_area_have_overlap_0():
    boxes = torch.tensor([[1.0, 1.0, 0.0, 4.0, 30.0], [1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, -2.0, 3.0, 0.0]])
    square = torch.tensor([[1.0, 1.0, 2.0, 2.0, 0.0]])
    assert pairwise_iou_rotated(boxes, boxes).tolist() == [[0.0] * 3] * 3
    assert pairwise_iou_rotated(boxes, square).tolist() == [[0.0]] * 3


def test_many_boxes_are_compared_in_blocks(monkeypatch):
    boxes1, boxes2 = random_boxes(23, 50, 50, 0, 1), random_boxes(7, 50, 50, 0, 2)
    expected = pairwise_iou_rotated(boxes1, boxes2)
    monkeypatch.setattr("detlib.layers.rotated_boxes._PAIRS_PER_BLOCK", 30)
    monkeypatch.setitem(_NEAR_PAIRS_PER_PART, "cpu", 4)
    torch.testing.assert_close(pairwise_iou_rotated(boxes1, boxes2), expected)


def test_no_boxes_have_no_overlaps():
    boxes = torch.tensor([[1.0, 1.0, 2.0, 2.0, 0.0]])
    assert pairwise_iou_rotated(boxes[:0], boxes).shape == (0, 1)
    assert pairwise_iou_rotated(boxes, boxes[:0]).shape == (1, 0)


def test_boxes_of_four_numbers_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 5\), got \(2, 4\)"):
        pairwise_iou_rotated(torch.zeros(2, 4), torch.zeros(2, 5))
