import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from detlib.structures import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from detlib.structures.boxes import matched_pairwise_iou, pairwise_intersection

XYXY, XYWH, XYWHA = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS


def three_boxes():
    return Boxes([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [4.0, 0.0, 4.0, 5.0]])


@pytest.mark.parametrize("kind", [list, tuple])
def test_convert_of_one_box_keeps_its_type(kind):
    assert BoxMode.convert(kind([1, 2, 3, 4]), XYWH, XYXY) == kind([1, 2, 4, 6])
    assert BoxMode.convert(kind([1, 2, 4, 6]), XYXY, XYWH) == kind([1, 2, 3, 4])


def test_convert_of_arrays_and_tensors_keeps_type_and_dtype():
    boxes = np.array([[1.0, 2.0, 3.0, 4.0]])
    converted = BoxMode.convert(boxes, XYWH, XYXY)
    assert converted.dtype == np.float64
    assert converted.tolist() == [[1, 2, 4, 6]]
    assert boxes.tolist() == [[1, 2, 3, 4]]
    converted = BoxMode.convert(torch.tensor(boxes).float(), XYWH, XYXY)
    assert converted.dtype == torch.float32
    assert converted.tolist() == [[1, 2, 4, 6]]


def test_convert_to_rotated_gives_center_and_angle_zero():
    assert BoxMode.convert([1.0, 2.0, 4.0, 6.0], XYWH, XYWHA) == [3, 5, 4, 6, 0]


def test_rotated_box_becomes_the_box_around_it():
    assert BoxMode.convert([5.0, 5.0, 4.0, 2.0, 90.0], XYWHA, XYXY) == pytest.approx([4, 3, 6, 7])
    diagonal = BoxMode.convert(torch.tensor([[0.0, 0.0, 2.0, 2.0, -45.0]]), XYWHA, XYXY)
    torch.testing.assert_close(diagonal, torch.tensor([[-1.0, -1.0, 1.0, 1.0]]) * 2**0.5)


@pytest.mark.parametrize("kind", [np.zeros, torch.zeros])
def test_convert_of_no_boxes_gives_no_boxes(kind):
    assert BoxMode.convert(kind((0, 4)), XYWH, XYXY).shape == (0, 4)
    assert BoxMode.convert(kind((0, 5)), XYWHA, XYXY).shape == (0, 4)


def test_convert_to_the_same_mode_returns_the_box():
    box = [1, 2, 3, 4]
    assert BoxMode.convert(box, XYWH, XYWH) is box


def test_mode_may_be_its_number_as_in_json():
    assert BoxMode.convert([1, 2, 3, 4], 1, 0) == [1, 2, 4, 6]


def test_unknown_conversion_lists_the_known_ones():
    with pytest.raises(ValueError, match="from XYXY_REL to XYXY_ABS; known: XYXY_ABS to XYWH_ABS"):
        BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_REL, XYXY)


@pytest.mark.parametrize("box", [[1, 2, 3], [[1, 2, 3, 4]] * 4, torch.zeros(2, 5)])
def test_convert_of_wrong_shape_is_an_error(box):
    with pytest.raises(ValueError, match="XYWH_ABS"):
        BoxMode.convert(box, XYWH, XYXY)


def test_boxes_are_float32_and_share_the_tensor():
    tensor = torch.zeros(2, 4)
    assert Boxes(tensor).tensor is tensor
    assert Boxes(tensor.double()).tensor.dtype == torch.float32
    assert Boxes(np.zeros((2, 4))).tensor.dtype == torch.float32


@pytest.mark.parametrize("nothing", [[], torch.zeros(0), torch.zeros(0, 4)])
def test_no_boxes_have_shape_0_4(nothing):
    boxes = Boxes(nothing)
    assert boxes.tensor.shape == (0, 4)
    assert boxes.area().shape == (0,)
    assert boxes.get_centers().shape == (0, 2)
    boxes.clip((3, 3))
    boxes.scale(2, 2)
    assert boxes.nonempty().shape == boxes.inside_box((3, 3)).shape == (0,)
    assert len(boxes[boxes.nonempty()]) == 0
    assert pairwise_iou(boxes, three_boxes()).shape == (0, 3)


def test_wrong_shape_of_boxes_is_an_error():
    with pytest.raises(ValueError, match=r"\(N, 4\), got \(2, 5\)"):
        Boxes(torch.zeros(2, 5))


def test_area_centers_and_nonempty():
    assert three_boxes().area().tolist() == [4, 4, 0]
    assert three_boxes().get_centers().tolist() == [[1, 1], [2, 2], [4, 2.5]]
    assert three_boxes().nonempty().tolist() == [True, True, False]
    assert three_boxes().nonempty(threshold=2.0).tolist() == [False, False, False]


def test_clip_moves_coordinates_to_the_border_and_keeps_the_source():
    tensor = torch.tensor([[-1.0, -2.0, 8.0, 3.0]])
    boxes = Boxes(tensor)
    boxes.clip((2, 5))
    assert boxes.tensor.tolist() == [[0, 0, 5, 2]]
    assert tensor.tolist() == [[-1, -2, 8, 3]]


def test_inside_box_counts_the_right_border_as_outside():
    boxes = Boxes([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 5.0, 4.0], [-1.0, 0.0, 5.0, 4.0]])
    assert boxes.inside_box((5, 5)).tolist() == [True, False, False]
    assert boxes.inside_box((5, 5), boundary_threshold=1).tolist() == [True, True, True]


def test_scale_multiplies_x_and_y():
    boxes = three_boxes()
    boxes.scale(10, 0.5)
    assert boxes.tensor[1].tolist() == [10, 0.5, 30, 1.5]


def test_boxes_are_chosen_by_number_slice_numbers_and_mask():
    boxes = three_boxes()
    assert boxes[-1].tensor.tolist() == [[4, 0, 4, 5]]
    assert len(boxes[1:]) == 2
    assert boxes[torch.tensor([2, 0])].tensor[:, 0].tolist() == [4, 0]
    assert len(boxes[torch.tensor([True, False, False])]) == 1
    with pytest.raises(IndexError, match=r"\(N, 4\)"):
        boxes[:, 0]


def test_iteration_gives_tensors_of_four_numbers():
    assert [box.tolist() for box in three_boxes()][2] == [4, 0, 4, 5]


def test_cat_and_clone_and_to():
    assert len(Boxes.cat([three_boxes(), three_boxes()])) == 6
    assert len(Boxes.cat([])) == 0
    boxes = three_boxes()
    copy = boxes.clone()
    copy.scale(2, 2)
    assert boxes.tensor[0].tolist() == [0, 0, 2, 2]
    assert boxes.to("meta").device.type == "meta"


def test_pairwise_overlaps_of_squares():
    boxes = three_boxes()
    assert pairwise_intersection(boxes, boxes).tolist() == [[4, 1, 0], [1, 4, 0], [0, 0, 0]]
    torch.testing.assert_close(pairwise_iou(boxes, boxes)[0], torch.tensor([1, 1 / 7, 0]))
    torch.testing.assert_close(pairwise_ioa(boxes, boxes)[0], torch.tensor([1, 1 / 4, 0]))
    torch.testing.assert_close(matched_pairwise_iou(boxes[:2], boxes[[1, 0]]), torch.tensor([1 / 7, 1 / 7]))


def test_overlap_of_empty_boxes_is_zero_not_nan():
    empty = three_boxes()[2]
    assert pairwise_iou(empty, empty).tolist() == [[0]]
    assert pairwise_ioa(empty, empty).tolist() == [[0]]
    assert matched_pairwise_iou(empty, empty).tolist() == [0]


def test_pairwise_iou_agrees_with_torchvision_and_changes_no_input():
    tensors = [torch.rand(n, 4) * 10 for n in (5, 7)]
    for tensor in tensors:
        tensor[:, 2:] += tensor[:, :2]
    before = [tensor.clone() for tensor in tensors]
    torch.testing.assert_close(pairwise_iou(Boxes(tensors[0]), Boxes(tensors[1])), box_iou(*tensors))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_overlaps_have_gradients():
    tensor = torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float32, requires_grad=True)
    other = Boxes([[1.0, 0.0, 3.0, 2.0]])
    for iou in (pairwise_iou, matched_pairwise_iou):
        (gradient,) = torch.autograd.grad(iou(Boxes(tensor), other).sum(), tensor)
        # IoU = 2 (x1 - 1) / (8 - 2 (x1 - 1) + 2 (x1 - 2)), whose derivative by x1 is 2 / 6.
        assert gradient[0, 2].item() == pytest.approx(1 / 3)


def test_matched_iou_needs_equally_many_boxes():
    with pytest.raises(ValueError, match="got 3 and 1"):
        matched_pairwise_iou(three_boxes(), three_boxes()[0])


def test_distance_to_the_four_sides():
    distance = pairwise_point_box_distance(torch.tensor([[1.0, 3.0]]), Boxes([[0.0, 0.0, 4.0, 5.0]]))
    assert distance.tolist() == [[[1, 3, 3, 2]]]
