import pytest
import torch

from detlib.layers import batched_nms, batched_nms_rotated, nms, nms_rotated
from detlib.layers.rotated_boxes import pairwise_iou_rotated

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


def test_scores_of_half_precision_go_with_boxes_of_any():
    groups = torch.tensor([1, 1, 0])
    assert batched_nms(BOXES, SCORES.half(), groups, 0.5).tolist() == [1, 2]
    assert batched_nms(BOXES.bfloat16(), SCORES.bfloat16(), groups, 0.5).tolist() == [1, 2]


def test_batched_nms_of_many_groups_in_half_precision_keeps_groups_apart():
    # 90 groups of one box each, which offsets in float16 would move onto one another.
    boxes = torch.tensor([[1000.0, 1000.0, 1010.0, 1010.0]]).half().repeat(90, 1)
    assert len(batched_nms(boxes, torch.linspace(0, 1, 90), torch.arange(90), 0.5)) == 90


# The second box is a quarter turn of the first: overlap 1/3. The third is the first, by half a turn.
ROTATED = torch.tensor([[5.0, 5.0, 4.0, 2.0, 30.0], [5.0, 5.0, 4.0, 2.0, 120.0], [5.0, 5.0, 4.0, 2.0, 210.0]])


def greedy(boxes, scores, threshold):
    order, kept = scores.argsort(descending=True).tolist(), []
    iou = pairwise_iou_rotated(boxes, boxes).tolist()
    for i in order:
        if all(iou[i][j] <= threshold for j in kept):
            kept.append(i)
    return kept


def many_rotated_boxes(number):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(number, 6, generator=generator)
    return values[:, :5] * torch.tensor([60.0, 60.0, 20.0, 20.0, 360.0]), values[:, 5]


def test_rotated_nms_drops_what_overlaps_more_than_the_threshold():
    assert nms_rotated(ROTATED, SCORES, 0.5).tolist() == [1, 0]
    assert nms_rotated(ROTATED, SCORES, 0.3).tolist() == [1]
    assert nms_rotated(ROTATED, SCORES, 1.0).tolist() == [1, 0, 2]


def test_box_that_is_suppressed_suppresses_none():
    # Each overlaps its neighbour by 2/3: the second goes, so the third stays, so the fourth goes.
    row = torch.tensor([[float(x), 0.0, 5.0, 1.0, 0.0] for x in range(6)])
    assert nms_rotated(row, torch.linspace(1, 0, 6), 0.6).tolist() == [0, 2, 4]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("number", [150, 1100], ids=["one block", "three blocks"])
def test_rotated_nms_is_greedy(number, threshold):
    boxes, scores = many_rotated_boxes(number)
    assert nms_rotated(boxes, scores, threshold).tolist() == greedy(boxes, scores, threshold)


def test_batched_rotated_nms_leaves_boxes_of_other_groups_alone():
    assert batched_nms_rotated(ROTATED, SCORES, torch.tensor([0, 1, 0]), 0.1).tolist() == [1, 0]
    assert batched_nms_rotated(ROTATED, SCORES, torch.tensor([0, 1, 1]), 0.1).tolist() == [1, 0]
    boxes, scores = many_rotated_boxes(60)
    groups = torch.arange(60) % 4 * 1000
    kept = batched_nms_rotated(boxes, scores, groups, 0.3)
    assert (scores[kept].diff() <= 0).all()
    alone = [nms_rotated(boxes[groups == g], scores[groups == g], 0.3) for g in groups.unique()]
    assert sorted(kept.tolist()) == sorted(
        i for g, chosen in zip(groups.unique(), alone) for i in (groups == g).nonzero()[chosen, 0].tolist()
    )


def test_rotated_nms_of_no_boxes_keeps_none():
    for empty in (
        nms_rotated(torch.zeros(0, 5), torch.zeros(0), 0.5),
        batched_nms_rotated(torch.zeros(0, 5), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5),
    ):
        assert empty.shape == (0,)
        assert empty.dtype == torch.int64


def test_rotated_nms_takes_half_precision_and_boxes_that_need_a_gradient():
    assert nms_rotated(ROTATED.half(), SCORES.half(), 0.5).tolist() == [1, 0]
    boxes = ROTATED.clone().requires_grad_()
    assert batched_nms_rotated(boxes, SCORES, torch.tensor([0, 0, 0]), 0.5).tolist() == [1, 0]
    assert boxes.grad is None
