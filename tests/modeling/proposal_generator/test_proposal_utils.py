import math

import pytest
import torch

from detlib.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    add_ground_truth_to_proposals_single_image,
    find_top_rpn_proposals,
)
from detlib.structures import Boxes, Instances
from detlib.utils.errors import NonFiniteError

INF, NAN = float("inf"), float("nan")


def find(levels, image_sizes=((50, 100),), nms_thresh=0.7, pre=100, post=100, min_size=0.0, training=False):
    """``levels``: for each feature map, the boxes and the logits of the only image."""
    boxes = [torch.tensor(b, dtype=torch.float32).reshape(1, -1, 4) for b, _ in levels]
    logits = [torch.tensor(x, dtype=torch.float32).reshape(1, -1) for _, x in levels]
    return find_top_rpn_proposals(boxes, logits, list(image_sizes), nms_thresh, pre, post, min_size, training)


def test_boxes_are_clipped_and_sorted_by_score():
    (found,) = find([([[-5, -5, 10, 10], [20, 20, 200, 200]], [0.0, 1.0])])
    assert found.proposal_boxes.tensor.tolist() == [[20, 20, 100, 50], [0, 0, 10, 10]]
    assert found.objectness_logits.tolist() == [1.0, 0.0]
    assert found.image_size == (50, 100)


def test_overlapping_boxes_are_suppressed_within_a_feature_map_only():
    box = [0, 0, 10, 10]
    (found,) = find([([box, box], [3.0, 2.0]), ([box], [1.0])])
    assert found.objectness_logits.tolist() == [3.0, 1.0]


def test_topk_before_nms_is_of_each_map_and_after_it_of_the_image():
    boxes = [[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(4)]
    (found,) = find([(boxes, [1.0, 2.0, 3.0, 4.0]), (boxes, [0.1, 0.2, 0.3, 0.4])], pre=2, post=3)
    assert found.objectness_logits.tolist() == pytest.approx([4.0, 3.0, 0.4])


def test_small_boxes_are_dropped_after_clipping():
    levels = [([[0, 0, 4, 10], [0, 20, 5, 30], [96, 0, 150, 20]], [3.0, 2.0, 1.0])]
    (found,) = find(levels, min_size=4.0)
    assert found.objectness_logits.tolist() == [2.0]


@pytest.mark.parametrize("bad_box, bad_logit", [([0, 0, INF, 10], 1.0), ([NAN, 0, 5, 5], 1.0), ([0, 0, 5, 5], INF)])
def test_values_that_are_not_finite_are_dropped_at_test_time_and_an_error_in_training(bad_box, bad_logit):
    levels = [([bad_box, [10, 10, 20, 20]], [bad_logit, 0.0])]
    (found,) = find(levels)
    assert found.proposal_boxes.tensor.tolist() == [[10, 10, 20, 20]]
    with pytest.raises(NonFiniteError, match="BASE_LR"):
        find(levels, training=True)
    with pytest.raises(FloatingPointError):
        find(levels, training=True)


def test_no_boxes_give_no_proposals():
    (found,) = find([([], [])], training=True)
    assert len(found) == 0
    assert found.proposal_boxes.tensor.shape == (0, 4)
    assert found.objectness_logits.shape == (0,)


def test_proposals_of_each_image_are_its_own():
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[5.0, 5, 60, 60]]])
    first, second = find_top_rpn_proposals(
        [boxes], [torch.tensor([[1.0], [2.0]])], [(50, 50), (30, 20)], 0.7, 10, 10, 0.0, True
    )
    assert first.proposal_boxes.tensor.tolist() == [[0, 0, 10, 10]]
    assert second.proposal_boxes.tensor.tolist() == [[5, 5, 20, 30]]


@pytest.fixture
def proposals():
    boxes = Boxes(torch.tensor([[0.0, 0, 5, 5]]))
    return Instances((40, 60), proposal_boxes=boxes, objectness_logits=torch.tensor([0.5]))


def test_true_boxes_are_appended_with_the_logit_of_a_sure_object(proposals):
    gt = Boxes(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    for truth in (gt, Instances((40, 60), gt_boxes=gt, gt_classes=torch.tensor([3, 4]))):
        (found,) = add_ground_truth_to_proposals([truth], [proposals])
        assert found.proposal_boxes.tensor.tolist() == [[0, 0, 5, 5], [1, 2, 3, 4], [5, 6, 7, 8]]
        assert found.objectness_logits.tolist() == pytest.approx([0.5] + [math.log(1e10)] * 2)
        assert set(found.get_fields()) == {"proposal_boxes", "objectness_logits"}
    assert len(proposals) == 1


def test_no_objects_leave_proposals_as_they_are(proposals):
    found = add_ground_truth_to_proposals_single_image(Boxes(torch.zeros(0, 4)), proposals)
    assert found.proposal_boxes.tensor.tolist() == [[0, 0, 5, 5]]


def test_other_fields_of_proposals_come_from_the_ground_truth(proposals):
    proposals.source = torch.tensor([7])
    gt = Instances((40, 60), gt_boxes=Boxes(torch.tensor([[1.0, 2, 3, 4]])), source=torch.tensor([8]))
    assert add_ground_truth_to_proposals_single_image(gt, proposals).source.tolist() == [7, 8]
    with pytest.raises(ValueError, match="source"):
        add_ground_truth_to_proposals_single_image(gt.gt_boxes, proposals)


def test_ground_truth_of_another_number_of_images(proposals):
    with pytest.raises(ValueError, match="2 images"):
        add_ground_truth_to_proposals([Boxes(torch.zeros(0, 4))] * 2, [proposals])
