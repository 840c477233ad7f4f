import torch

from detlib.layers import batched_nms, nms

BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])  # IoU of 0 and 1: 0.9
SCORES = torch.tensor([0.5, 0.9, 0.1])


def test_nms_keeps_the_better_of_two_overlapping_boxes():
    assert nms(BOXES, SCORES, 0.5).tolist() == [1, 2]


def test_overlap_equal_to_the_threshold_is_kept():
    half = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # IoU 0.5
    assert nms(half, SCORES[:2], 0.5).tolist() == [1, 0]


def test_batched_nms_leaves_boxes_of_other_groups_alone():
    assert batched_nms(BOXES, SCORES, torch.tensor([0, 1, 0]), 0.5).tolist() == [1, 0, 2]
    assert batched_nms(BOXES, SCORES, torch.tensor([1, 1, 0]), 0.5).tolist() == [1, 2]


def test_batched_nms_of_no_boxes_keeps_none():
    empty = batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)
    assert empty.shape == (0,)
    assert empty.dtype == torch.int64


def test_batched_nms_of_many_groups_in_half_precision_keeps_groups_apart():
    # 90 groups of one box each, which offsets in float16 would move onto one another.
    boxes = torch.tensor([[1000.0, 1000.0, 1010.0, 1010.0]]).half().repeat(90, 1)
    assert len(batched_nms(boxes, torch.linspace(0, 1, 90), torch.arange(90), 0.5)) == 90
