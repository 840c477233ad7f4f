import pytest
import torch

from detlib.structures import RotatedBoxes, pairwise_iou_rotated


def assert_boxes(boxes, expected, **tolerance):
    assert isinstance(boxes, RotatedBoxes)
    torch.testing.assert_close(boxes.tensor, torch.tensor(expected), **tolerance)


def two_boxes():
    return RotatedBoxes([[5.0, 4.0, 6.0, 2.0, 0.0], [5.0, 4.0, 6.0, 2.0, 90.0]])


def test_area_is_width_times_height():
    assert two_boxes().area().tolist() == [12, 12]


def test_angles_are_normalized_to_the_half_open_range():
    boxes = RotatedBoxes([[0.0, 0.0, 1.0, 1.0, angle] for angle in (-180.0, 180.0, 270.0, -190.0, 720.0, 45.5)])
    boxes.normalize_angles()
    assert boxes.tensor[:, 4].tolist() == [-180, -180, -90, 170, 0, 45.5]


def test_clip_cuts_upright_boxes_at_the_image():
    boxes = RotatedBoxes([[2.0, 3.0, 6.0, 4.0, 0.5], [9.0, 5.0, 4.0, 4.0, 360.0], [5.0, 3.0, 2.0, 2.0, 0.0]])
    boxes.clip((6, 10))
    assert_boxes(boxes, [[2.5, 3.0, 5.0, 4.0, 0.5], [8.5, 4.5, 3.0, 3.0, 0.0], [5.0, 3.0, 2.0, 2.0, 0.0]])


def test_clip_leaves_turned_boxes_alone():
    turned = [[2.0, 3.0, 6.0, 4.0, 2.0], [2.0, 3.0, 6.0, 4.0, 90.0]]
    boxes = RotatedBoxes(turned)
    boxes.clip((6, 10))
    assert_boxes(boxes, turned)
    boxes.clip((6, 10), clip_angle_threshold=2.0)
    assert_boxes(boxes, [[2.5, 3.0, 5.0, 4.0, 2.0], turned[1]])


def test_box_outside_the_image_is_clipped_to_nothing():
    boxes = RotatedBoxes([[-9.0, 3.0, 6.0, 4.0, 0.0]])
    boxes.clip((6, 10))
    assert boxes.nonempty().tolist() == [False]


def test_inside_box_looks_at_the_corners():
    boxes = RotatedBoxes([[5.0, 4.0, 6.0, 2.0, 0.0], [5.0, 2.0, 6.0, 2.0, 90.0], [5.0, 4.0, 4.0, 4.0, 45.0]])
    assert boxes.inside_box((8, 10)).tolist() == [True, False, True]
    assert boxes.inside_box((6, 10)).tolist() == [True, False, False]
    assert boxes.inside_box((6, 10), boundary_threshold=2).tolist() == [True, True, True]


def test_nonempty_boxes_exceed_the_threshold_in_width_and_height():
    boxes = RotatedBoxes([[0.0, 0.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 3.0, 1.0, 0.0]])
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.nonempty(threshold=1.0).tolist() == [True, False, False]


def test_scale_of_upright_and_quarter_turned_boxes_is_exact():
    boxes = two_boxes()
    boxes.scale(2.0, 3.0)
    assert_boxes(boxes, [[10.0, 12.0, 12.0, 6.0, 0.0], [10.0, 12.0, 18.0, 4.0, 90.0]])


def test_scale_of_a_turned_box_keeps_the_lengths_of_its_sides_and_the_direction_of_its_height():
    boxes = RotatedBoxes([[1.0, 1.0, 2.0, 4.0, 45.0]])
    boxes.scale(3.0, 1.0)
    # The sides (2, 2) / sqrt(2) and (4, 4) / sqrt(2) become (6, 2) / sqrt(2) and (12, 4) / sqrt(2).
    assert_boxes(boxes, [[3.0, 1.0, 20**0.5, 80**0.5, 71.565051]])


def test_scale_by_equal_factors_keeps_angles():
    boxes = RotatedBoxes([[1.0, 1.0, 2.0, 4.0, -150.0]])
    boxes.scale(2.0, 2.0)
    assert_boxes(boxes, [[2.0, 2.0, 4.0, 8.0, -150.0]])


def test_index_gives_rotated_boxes():
    boxes = two_boxes()
    assert_boxes(boxes[1], [[5.0, 4.0, 6.0, 2.0, 90.0]])
    assert_boxes(boxes[:1], [[5.0, 4.0, 6.0, 2.0, 0.0]])
    assert_boxes(boxes[torch.tensor([False, True])], [[5.0, 4.0, 6.0, 2.0, 90.0]])
    with pytest.raises(IndexError, match="not"):
        boxes[0, 1]


def test_iteration_gives_the_five_numbers_of_each_box():
    assert [box.tolist() for box in two_boxes()] == two_boxes().tensor.tolist()
    assert len(two_boxes()) == 2


def test_cat_joins_boxes_and_accepts_none():
    assert len(RotatedBoxes.cat([two_boxes(), two_boxes()])) == 4
    empty = RotatedBoxes.cat([])
    assert isinstance(empty, RotatedBoxes)
    assert empty.tensor.shape == (0, 5)


def test_clone_has_memory_of_its_own():
    boxes = two_boxes()
    boxes.clone().scale(2.0, 2.0)
    assert_boxes(boxes, two_boxes().tensor.tolist())


def test_to_returns_boxes_on_the_device():
    assert two_boxes().to(torch.device("meta")).device.type == "meta"


def test_no_boxes_pass_all_methods():
    boxes = RotatedBoxes(torch.zeros(0, 5))
    boxes.scale(2.0, 3.0)
    boxes.clip((4, 4))
    assert len(boxes) == 0
    assert boxes.area().shape == boxes.nonempty().shape == boxes.inside_box((4, 4)).shape == (0,)
    assert boxes.get_centers().shape == (0, 2)
    assert pairwise_iou_rotated(boxes, two_boxes()).shape == (0, 2)


def test_boxes_of_four_numbers_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 5\), got \(3, 4\)"):
        RotatedBoxes(torch.zeros(3, 4))


def test_pairwise_iou_compares_each_with_each():
    # Crossing at 90 degrees: 2 * 2 of 12 + 12 - 4.
    torch.testing.assert_close(pairwise_iou_rotated(two_boxes(), two_boxes()), torch.tensor([[1.0, 0.2], [0.2, 1.0]]))
