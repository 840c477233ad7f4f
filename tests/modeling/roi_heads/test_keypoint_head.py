import math

import pytest
import torch

from detlib.layers import ShapeSpec
from detlib.modeling.roi_heads.keypoint_head import (
    ROI_KEYPOINT_HEAD_REGISTRY,
    BaseKeypointRCNNHead,
    KRCNNConvDeconvUpsampleHead,
    build_keypoint_head,
    keypoint_rcnn_inference,
    keypoint_rcnn_loss,
)
from detlib.structures import Boxes, Instances, Keypoints
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

S = 4  # Cells per side; regions are 4 x 4 pixels, so that a cell is a pixel.
SHAPE = ShapeSpec(channels=3, height=2, width=2)


def proposals(*keypoints):
    """A region for each list of [x, y, visibility]."""
    boxes = Boxes(torch.tensor([[0.0, 0, S, S]] * len(keypoints)).reshape(-1, 4))
    points = torch.tensor(keypoints, dtype=torch.float32) if keypoints else torch.zeros(0, 2, 3)
    return Instances((S, S), proposal_boxes=boxes, gt_keypoints=Keypoints(points))


class Fixed(BaseKeypointRCNNHead):
    def layers(self, x):
        return x


def test_undecided_heatmaps_cost_the_logarithm_of_the_cells():
    loss = keypoint_rcnn_loss(torch.zeros(1, 2, S, S), [proposals([[0.5, 1.5, 2], [3.5, 3.5, 1]])], None)
    assert loss.item() == pytest.approx(math.log(S * S))


def test_a_peak_at_the_keypoint_costs_nothing_and_invisible_ones_do_not_count():
    logits = torch.zeros(1, 2, S, S)
    logits[0, 0, 1, 3] = 100  # y = 1, x = 3
    assert keypoint_rcnn_loss(logits, [proposals([[3.5, 1.5, 2], [2, 2, 0]])], None).item() == pytest.approx(0)
    assert keypoint_rcnn_loss(logits, [proposals([[1.5, 3.5, 2], [2, 2, 0]])], None).item() == pytest.approx(100)


def test_keypoints_outside_of_the_region_do_not_count():
    given = [proposals([[9, 1, 2], [1, 1, 2]])]
    with EventStorage() as storage:
        loss = keypoint_rcnn_loss(torch.zeros(1, 2, S, S), given, None)
        assert storage.latest()["keypoint_head/num_visible"][0] == 1
    assert loss.item() == pytest.approx(math.log(S * S))


@pytest.mark.parametrize(("normalizer", "expected"), [("visible", 1.0), (6.0, 3 / (2 * 6))])
def test_loss_is_divided_by_visible_keypoints_or_by_a_number_for_each_image(normalizer, expected):
    head = Fixed(num_keypoints=2, loss_normalizer=normalizer, loss_weight=2.0)
    given = [proposals([[1, 1, 2], [1, 1, 2]]), proposals([[1, 1, 2], [1, 1, 0]])]
    loss = head(torch.zeros(2, 2, S, S), given)["loss_keypoint"]
    assert loss.item() == pytest.approx(2 * expected * math.log(S * S))


@pytest.mark.parametrize("given", [[], [[[1.0, 1, 0], [9, 9, 2]]]], ids=["no region", "no visible keypoint"])
@pytest.mark.parametrize("normalizer", [None, 6.0])
def test_without_keypoints_the_loss_is_zero_and_has_a_gradient(given, normalizer):
    logits = torch.zeros(len(given), 2, S, S, requires_grad=True)
    loss = keypoint_rcnn_loss(logits, [proposals(*given), proposals()], normalizer)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_regions_without_fields_of_an_image_without_objects_are_left_out():
    empty = Instances((S, S), proposal_boxes=Boxes(torch.zeros(0, 4)))
    loss = keypoint_rcnn_loss(torch.zeros(1, 1, S, S), [empty, proposals([[1, 1, 2]])], None)
    assert loss.item() == pytest.approx(math.log(S * S))


def test_inference_finds_the_peaks_in_each_image():
    logits = torch.zeros(2, 1, S, S)
    logits[0, 0, 1, 3] = logits[1, 0, 2, 0] = 50
    images = [
        Instances((40, 40), pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
        for boxes in ([[10.0, 20, 14, 24]], [], [[0.0, 0, 4, 4]])
    ]
    keypoint_rcnn_inference(logits, images)
    assert images[0].pred_keypoints[0, 0].tolist() == pytest.approx([13.5, 21.5, 1.0])
    assert images[2].pred_keypoints[0, 0].tolist() == pytest.approx([0.5, 2.5, 1.0])
    assert images[1].pred_keypoints.shape == (0, 1, 3)
    assert [x.pred_keypoint_heatmaps.shape for x in images] == [(1, 1, S, S), (0, 1, S, S), (1, 1, S, S)]


def test_head_has_four_times_the_size_and_the_names_that_checkpoints_use():
    head = KRCNNConvDeconvUpsampleHead(SHAPE, num_keypoints=5, conv_dims=[6, 7])
    assert head.layers(torch.zeros(2, 3, 2, 2)).shape == (2, 5, 8, 8)
    assert head.layers(torch.zeros(0, 3, 2, 2)).shape == (0, 5, 8, 8)
    names = ["conv_fcn1", "conv_fcn2", "score_lowres"]
    assert list(head.state_dict()) == [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def test_config_chooses_head_and_normalizer(tiny_rcnn_cfg):
    tiny_rcnn_cfg.MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT = 4.0
    head = build_keypoint_head(tiny_rcnn_cfg, SHAPE)
    assert isinstance(head, KRCNNConvDeconvUpsampleHead)
    assert (head.num_keypoints, head.loss_weight, head.loss_normalizer) == (2, 4.0, "visible")
    tiny_rcnn_cfg.MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = False
    # 2 keypoints of a quarter of 16 proposals
    assert build_keypoint_head(tiny_rcnn_cfg, SHAPE).loss_normalizer == 8.0
    assert ROI_KEYPOINT_HEAD_REGISTRY.get("KRCNNConvDeconvUpsampleHead") is KRCNNConvDeconvUpsampleHead


def test_an_unknown_normalizer_is_a_config_error():
    with pytest.raises(ConfigError, match="'visible' or a number"):
        Fixed(num_keypoints=2, loss_normalizer="all")
